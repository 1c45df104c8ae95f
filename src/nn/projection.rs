//! A linear layer inside a larger one, with or without an adapter.

use candle_core::{Module, Result, Tensor, bail};
use candle_nn::VarBuilder;

use super::{Linear, LoraConfig, LoraLinear};
use crate::ops::record;

#[derive(Clone, Debug)]
pub(crate) enum Projection {
    Plain(Linear),
    Adapted(LoraLinear),
}

impl Projection {
    /// The layer without its adapter.
    pub(crate) fn base(&self) -> &Linear {
        match self {
            Self::Plain(linear) => linear,
            Self::Adapted(lora) => lora.base(),
        }
    }

    /// The layer with an adapter that is read or created.
    pub(crate) fn with_lora(&self, config: &LoraConfig, vb: VarBuilder) -> Result<Self> {
        Ok(Self::Adapted(LoraLinear::new(self.base().clone(), config, vb)?))
    }

    /// Several projections of one input as one, whose outputs follow one another. Adapters must share A.
    pub(super) fn stacked(all: [&Self; 3]) -> Result<Self> {
        let weight = record::stack_rows(&all.map(|one| one.base().weight()))?;
        let biases: Vec<&Tensor> = all.iter().filter_map(|one| one.base().bias()).collect();
        let bias = if biases.is_empty() { None } else { Some(record::stack_rows(&biases)?) };
        let base = Linear::new(weight, bias);
        match all {
            [Self::Plain(_), Self::Plain(_), Self::Plain(_)] => Ok(Self::Plain(base)),
            [Self::Adapted(q), Self::Adapted(k), Self::Adapted(v)] => {
                let b = record::stack_rows(&[q.b(), k.b(), v.b()])?;
                Ok(Self::Adapted(LoraLinear::from_tensors(base, q.a().clone(), b, q.scale())?))
            }
            _ => bail!("projection: expected adapters on all of queries, keys and values, got some"),
        }
    }
}

impl From<Linear> for Projection {
    fn from(linear: Linear) -> Self {
        Self::Plain(linear)
    }
}

impl Module for Projection {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain(linear) => linear.forward(xs),
            Self::Adapted(lora) => lora.forward(xs),
        }
    }
}
