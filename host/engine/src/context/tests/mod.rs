//! The matcher and the ignore rules against a slow model.

mod model;
