"""What both daemons need: settings, layout, payloads, files, errors."""
