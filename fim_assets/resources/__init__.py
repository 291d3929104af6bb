"""Resources and run-time support of the assets."""
