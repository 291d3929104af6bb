"""Jobs, and the schedule, sensors and automation conditions that start them."""
