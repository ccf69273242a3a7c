//! The compose files: what they may say, and the sidecars in a real engine.
