"""Folders of artifacts: what lies in each under which name. Nothing else knows these names."""
