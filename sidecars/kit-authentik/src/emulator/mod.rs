//! Authentik's side of the wire, for the command line and the tests.
