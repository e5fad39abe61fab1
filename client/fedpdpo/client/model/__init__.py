"""The policy: frozen backbone, shared LoRA, private parts, and the fast exact way through it."""
