"""What is kept from others: folders of this user alone, secrets, and what packages would tell."""
