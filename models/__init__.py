"""DLRM for any embedding module that is handed to it."""
