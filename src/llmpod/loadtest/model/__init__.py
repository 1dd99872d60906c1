"""What is measured, as data: the plan, a job's record, how it failed, the files of a run."""
