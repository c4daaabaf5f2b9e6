"""Resumable uploads: draft-ietf-httpbis-resumable-upload, around what ``files`` does."""
