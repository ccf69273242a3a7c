//! Black-box tests of the binaries; the code lives under the test targets.
