//! Takes Authentik's events by webhook and from its API, has each on disk once before anyone is told so, and brings it
//! to the gateway for as long as that takes.
