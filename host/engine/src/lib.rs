//! The build engine: plan, cache keys, solver, build context, COPY, pulls and exports.
//!
//! The law: a build decides everything here, and does its work through others: steps run in an
//! [`exec::Executor`], everything that lasts is in the [`store::Store`], images are read with [`oci`].
//! Nothing here reads the environment or the home directory, or prints.
//!
//! | module | what it does |
//! |---|---|
//! | [`build`] | a whole build, from the request to the result |
//! | [`dockerfile`] | Dockerfiles as instructions and positions |
//! | [`plan`] | instructions become stages and steps |
//! | `solver`, `keys` | which step runs when, and the key of its result |
//! | [`context`], [`copy`], [`rootfs`] | files of the context and of layers, and layers made of them |
//! | [`download`] | files from servers, for ADD |
//! | [`pull`], [`assemble`], [`export`] | images into the store, in the store, and out of it |
//! | [`event`], [`changes`] | what a build tells its observers |
#![forbid(unsafe_code)]

pub mod assemble;
pub mod build;
pub mod changes;
pub mod context;
pub mod copy;
pub mod download;
pub mod event;
pub mod export;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod keys;
pub mod plan;
pub mod pull;
pub mod rootfs;
mod similar;
mod solver;
