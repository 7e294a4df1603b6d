//! Automation: image, demo, test, bench, ci
fn main() {}
