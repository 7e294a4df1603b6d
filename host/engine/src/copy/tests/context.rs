//! The context on disk, with all that can be wrong with it.
