"""What an installation is deployed from."""
