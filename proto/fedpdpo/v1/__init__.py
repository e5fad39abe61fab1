"""The wire contract; the modules beside this file are generated from the .proto files."""
