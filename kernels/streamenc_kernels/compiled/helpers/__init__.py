"""What helpers of a program need: threads that may be stopped anywhere."""
