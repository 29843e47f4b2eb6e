"""`python -m taskdistill.cli`."""

from taskdistill.cli.main import main

main()
