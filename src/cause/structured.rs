//! Structured fields (RFC 9651), read strictly.
