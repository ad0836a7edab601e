"""How networks are trained: one loop for every method, the samples it draws, and what it keeps."""
