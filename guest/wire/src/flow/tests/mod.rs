//! Two tables back to back, whatever happens and in whatever order; and a peer that breaks rules.

mod pair;
mod rules;
