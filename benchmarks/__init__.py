"""One question a file: what is asked, how it is measured, and figures in ``results/`` with their circumstances."""
