"""Low-bit networks without training labels: what can be done with a trained network and a few hundred inputs."""
