"""`python -m taskdistill.cli`."""

from taskdistill.cli import main

main()
