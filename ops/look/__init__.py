"""What runs, what happened and what is wrong. Nothing here changes the stack."""
