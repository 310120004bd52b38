//! What the integration tests share. Each test binary uses a part of it.
#![allow(dead_code)]

pub mod broker;
pub mod client;
pub mod kafka;
pub mod proxy;
pub mod scene;
pub mod topics;
pub mod worker;
