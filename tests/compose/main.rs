//! The compose files: what they may say. The sidecars in a real engine are in `engine/`, a target of its own.

mod dockerfiles;
