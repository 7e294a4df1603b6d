//! Images: their configuration, and how they are found and put together.

mod config;
mod platform;

pub use config::{Healthcheck, HistoryItem, ImageConfig, ImageConfigFile, RootFs};
pub use platform::{NotAPlatform, Platform};
