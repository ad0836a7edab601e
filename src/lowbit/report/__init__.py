"""The page a pilot run ends in: `lowbit.report.page.render(run)`."""
