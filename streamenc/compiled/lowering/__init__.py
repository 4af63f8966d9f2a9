"""What layers ask of a plan, by what it is; together they are the class Plan."""
