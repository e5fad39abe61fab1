"""The client daemon: trains on local preferences, keeps the private parts at home."""
