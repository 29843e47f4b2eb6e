"""One file for each evaluation task type; files with an underscore hold what several share."""
