"""What tests share: small models, clips, servers, and what equal means."""
