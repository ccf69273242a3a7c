//! Authentik's REST API, as far as daemons read it. Types are written by hand: the generated client's closed enum of
//! actions fails a whole page over one `custom_*` event.
