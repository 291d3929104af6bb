"""What starts runs without a person: schedule, sensors, conditions; and the jobs that they start."""
