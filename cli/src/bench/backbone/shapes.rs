//! Whose shapes the backbone has.

use std::{convert::Infallible, fmt, path::PathBuf, str::FromStr};

use xomni_engine::{
    checkpoint::{BackboneConfig, XOmniConfig},
    measure::published,
};

use crate::error::CliError;

/// Those that are published, or those of a directory.
#[derive(Debug, Clone)]
pub enum Shapes {
    /// Of X-Omni as it is published, with 7 billion parameters in the layers.
    Published,
    /// Of an X-Omni directory.
    Of(PathBuf),
}

impl FromStr for Shapes {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "7b" => Self::Published,
            directory => Self::Of(directory.into()),
        })
    }
}

impl fmt::Display for Shapes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Published => f.write_str("7b"),
            Self::Of(directory) => directory.display().fmt(f),
        }
    }
}

impl Shapes {
    /// The shapes, of so many layers if that is said.
    ///
    /// # Errors
    /// What opening the directory says.
    pub fn config(&self, layers: Option<u32>) -> Result<BackboneConfig, CliError> {
        let mut config = match self {
            Self::Published => published(),
            Self::Of(directory) => XOmniConfig::open(directory)?.backbone,
        };
        if let Some(layers) = layers {
            config.layers = layers as usize;
            config.adapter_layers = config.adapter_layers.min(config.layers);
            config.head_layers = config
                .head_layers
                .min(config.layers - config.adapter_layers);
        }
        Ok(config)
    }
}
