//! The trainable tensors of a model, by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result, Shape, Tensor, Var, bail};
use candle_nn::init::NormalOrUniform;
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal, Uniform};

use crate::cpu::{allocation, tensor_file};

/// A store of trainable tensors behind a [`VarBuilder`]. Unlike candle's `VarMap`, it draws initial values from a seed and
/// the tensor's name, lists its tensors by name, and reports tensors that are missing, left over or misshapen when a model is restored.
///
/// ```
/// use candle_attention::nn::Parameters;
/// use candle_core::{DType, Device};
///
/// let draw = |seed| -> candle_core::Result<Vec<f32>> {
///     let parameters = Parameters::new(seed);
///     let vb = parameters.var_builder(DType::F32, &Device::Cpu);
///     candle_nn::linear(2, 3, vb)?;
///     parameters.vars()[1].1.flatten_all()?.to_vec1()
/// };
/// assert_eq!(draw(7)?, draw(7)?);
/// assert_ne!(draw(7)?, draw(8)?);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Parameters {
    store: Arc<Mutex<Store>>,
}

struct Store {
    vars: BTreeMap<String, Var>,
    source: Source,
}

/// Where the value of a tensor comes from when it is first requested.
enum Source {
    /// Drawn from this seed and the tensor's name.
    Drawn { seed: u64 },
    /// It must be there already. Holds the names not requested yet.
    Restored { unread: BTreeSet<String> },
}

impl Parameters {
    /// An empty store. Tensors are created when first requested. The values of each depend on `seed` and its name alone:
    /// neither the order of requests nor other tensors change them.
    pub fn new(seed: u64) -> Self {
        Self::from_store(BTreeMap::new(), Source::Drawn { seed })
    }

    /// A store of the given tensors, which become trainable. Requesting any other is an error.
    ///
    /// # Errors
    /// If a tensor cannot be copied into a variable.
    pub fn restored(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Result<Self> {
        let vars = tensors
            .into_iter()
            .map(|(name, tensor)| Ok((name, Var::from_tensor(&tensor)?)))
            .collect::<Result<BTreeMap<_, _>>>()?;
        let unread = vars.keys().cloned().collect();
        Ok(Self::from_store(vars, Source::Restored { unread }))
    }

    fn from_store(vars: BTreeMap<String, Var>, source: Source) -> Self {
        Self { store: Arc::new(Mutex::new(Store { vars, source })) }
    }

    fn lock(&self) -> MutexGuard<'_, Store> {
        // No statement leaves the store inconsistent, so a panic elsewhere does no harm.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A builder that reads from this store and, if it is a new one, creates the tensors that are requested.
    pub fn var_builder(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        self.view(false, dtype, device)
    }

    /// A builder for the same model without a graph: its tensors share the variables' storage, so they follow training,
    /// but results computed from them keep nothing for a backward pass.
    pub fn frozen(&self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        self.view(true, dtype, device)
    }

    fn view(&self, frozen: bool, dtype: DType, device: &Device) -> VarBuilder<'static> {
        let view = View { parameters: self.clone(), frozen };
        VarBuilder::from_backend(Box::new(view), dtype, device.clone())
    }

    /// All variables with their names, sorted by name.
    pub fn vars(&self) -> Vec<(String, Var)> {
        self.lock().vars.iter().map(|(name, var)| (name.clone(), var.clone())).collect()
    }

    /// All variables, sorted by name: what an optimizer takes.
    pub fn all_vars(&self) -> Vec<Var> {
        self.lock().vars.values().cloned().collect()
    }

    /// Writes all variables to a safetensors file, by name and in their dtypes. The file appears, or takes the place of an
    /// older one, by one rename.
    ///
    /// # Errors
    /// If it cannot be written.
    ///
    /// ```
    /// use candle_attention::nn::{Parameters, causal_self_attention};
    /// use candle_core::{DType, Device, Module, Tensor};
    ///
    /// let file = tempfile::tempdir()?.keep().join("layer.safetensors");
    /// let model = |parameters: &Parameters| {
    ///     causal_self_attention(8, 2, parameters.var_builder(DType::F32, &Device::Cpu))
    /// };
    /// let trained = Parameters::new(1);
    /// let layer = model(&trained)?;
    /// trained.save(&file)?;
    ///
    /// // First the model, which says what there has to be; then its values.
    /// let loaded = Parameters::new(2);
    /// let same = model(&loaded)?;
    /// loaded.load(&file)?;
    /// let xs = Tensor::ones((1, 3, 8), DType::F32, &Device::Cpu)?;
    /// assert_eq!(layer.forward(&xs)?.to_vec3::<f32>()?, same.forward(&xs)?.to_vec3::<f32>()?);
    /// # std::fs::remove_dir_all(file.parent().unwrap())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let tensors = self.vars().into_iter().map(|(name, var)| (name, var.as_detached_tensor())).collect();
        tensor_file::save(path.as_ref(), &tensors)
    }

    /// Sets all variables to the values of a safetensors file: those that the model has requested by now, no more and no
    /// fewer. Values in `f16`, `bf16`, `f32` and `f64` are cast to the variable's dtype.
    ///
    /// # Errors
    /// If the file cannot be read, tensors are missing, left over or misshapen, or have another dtype: all of these are
    /// named, and no variable is changed.
    pub fn load(&self, path: impl AsRef<Path>) -> Result<()> {
        let (path, vars) = (path.as_ref(), self.vars());
        let found = tensor_file::load(path, vars.iter().map(|(name, var)| (name, var.as_tensor())))?;
        for (name, tensor) in &found {
            if !matches!(tensor.dtype(), DType::F16 | DType::BF16 | DType::F32 | DType::F64) {
                bail!("{}: expected {name} in F16, BF16, F32 or F64, got {:?}", path.display(), tensor.dtype());
            }
        }
        let cast = |(name, var): &(String, Var)| match found.get(name) {
            Some(tensor) => tensor.to_dtype(var.dtype())?.to_device(var.device()),
            None => bail!("{}: {name} is missing", path.display()),
        };
        let values = vars.iter().map(cast).collect::<Result<Vec<_>>>()?;
        vars.iter().zip(values).try_for_each(|((_, var), value)| var.set(&value))
    }

    /// The number of trainable scalars.
    pub fn count(&self) -> usize {
        self.lock().vars.values().map(|var| var.elem_count()).sum()
    }

    /// The restored tensors that no layer has requested, sorted: after a model is built, those it has no use for.
    pub fn unread(&self) -> Vec<String> {
        match &self.lock().source {
            Source::Restored { unread } => unread.iter().cloned().collect(),
            Source::Drawn { .. } => Vec::new(),
        }
    }
}

impl std::fmt::Debug for Parameters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.vars().iter().map(|(name, var)| (name, var.shape()))).finish()
    }
}

impl Store {
    fn get(&mut self, shape: &Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Var> {
        if let Source::Restored { unread } = &mut self.source {
            unread.remove(name);
        }
        if let Some(var) = self.vars.get(name) {
            if var.shape() != shape {
                bail!("parameters: expected {name} of shape {:?}, got {:?}", shape.dims(), var.dims());
            }
            if var.dtype() != dtype {
                bail!("parameters: expected {name} of dtype {dtype:?}, got {:?}", var.dtype());
            }
            if !var.device().same_device(device) {
                let (expected, got) = (device.location(), var.device().location());
                bail!("parameters: expected {name} on {expected:?}, got {got:?}");
            }
            return Ok(var.clone());
        }
        let var = match &mut self.source {
            Source::Drawn { seed } => draw(name, shape, init, dtype, device, *seed)?,
            Source::Restored { .. } => bail!("parameters: {name} of shape {:?} is missing", shape.dims()),
        };
        self.vars.insert(name.to_string(), var.clone());
        Ok(var)
    }
}

/// A variable of `shape` with values drawn as `init` says.
fn draw(name: &str, shape: &Shape, init: Init, dtype: DType, device: &Device, seed: u64) -> Result<Var> {
    // The values as drawn, in f64, and as stored.
    let bytes_each = size_of::<f64>() + dtype.size_in_bytes();
    allocation::check(&format!("parameters: {name} of shape {:?}", shape.dims()), shape.dims(), bytes_each)?;
    let rng = &mut rng_of(seed, name);
    let values = match init {
        Init::Const(value) => vec![value; shape.elem_count()],
        Init::Randn { mean, stdev } => normal(mean, stdev, shape, rng)?,
        Init::Uniform { lo, up } => uniform(lo, up, shape, rng)?,
        Init::Kaiming { dist, fan, non_linearity } => {
            let stdev = non_linearity.gain() / (fan.for_shape(shape) as f64).sqrt();
            let bound = 3f64.sqrt() * stdev;
            match dist {
                NormalOrUniform::Normal => normal(0.0, stdev, shape, rng)?,
                NormalOrUniform::Uniform => uniform(-bound, bound, shape, rng)?,
            }
        }
    };
    // On the CPU first: not every device has f64.
    Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?)
}

/// The random numbers of one tensor.
fn rng_of(seed: u64, name: &str) -> ChaCha8Rng {
    let mut bytes = [0; 32];
    // The last word sets these streams apart from those of dropout.
    for (bytes, number) in bytes.chunks_exact_mut(8).zip([seed, name_hash(name), 0, u64::MAX]) {
        bytes.copy_from_slice(&number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(bytes)
}

/// A number for a name, the same in every version and on every machine: FNV-1a of 64 bits.
pub(crate) fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn normal(mean: f64, stdev: f64, shape: &Shape, rng: &mut ChaCha8Rng) -> Result<Vec<f64>> {
    let distribution = Normal::new(mean, stdev).map_err(candle_core::Error::wrap)?;
    Ok(distribution.sample_iter(rng).take(shape.elem_count()).collect())
}

fn uniform(lo: f64, up: f64, shape: &Shape, rng: &mut ChaCha8Rng) -> Result<Vec<f64>> {
    let distribution = Uniform::new_inclusive(lo, up).map_err(candle_core::Error::wrap)?;
    Ok(distribution.sample_iter(rng).take(shape.elem_count()).collect())
}

/// The store as a [`VarBuilder`] sees it.
struct View {
    parameters: Parameters,
    /// Whether it returns detached tensors, to which no gradient flows, instead of the variables.
    frozen: bool,
}

impl SimpleBackend for View {
    fn get(&self, shape: Shape, name: &str, init: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let var = self.parameters.lock().get(&shape, name, init, dtype, device)?;
        Ok(if self.frozen { var.as_detached_tensor() } else { var.as_tensor().clone() })
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        match self.parameters.lock().vars.get(name) {
            Some(var) if self.frozen => Ok(var.as_detached_tensor()),
            Some(var) => Ok(var.as_tensor().clone()),
            None => bail!("parameters: {name} is missing"),
        }
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.parameters.lock().vars.contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(seed: u64, names: &[&str]) -> BTreeMap<String, Vec<f32>> {
        let parameters = Parameters::new(seed);
        let vb = parameters.var_builder(DType::F32, &Device::Cpu);
        for name in names {
            vb.get_with_hints((3, 5), name, Init::Randn { mean: 0.0, stdev: 1.0 }).unwrap();
        }
        let values = |(name, var): (String, Var)| (name, var.flatten_all().unwrap().to_vec1().unwrap());
        parameters.vars().into_iter().map(values).collect()
    }

    #[test]
    fn a_tensor_is_drawn_from_seed_and_name_alone() {
        let (some, more) = (drawn(7, &["a", "b"]), drawn(7, &["c", "b", "aa", "a"]));
        assert!(some.iter().all(|(name, values)| more[name] == *values));
        let mut all: Vec<_> = more.into_values().chain(drawn(8, &["a"]).into_values()).collect();
        all.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert!(all.windows(2).all(|two| two[0] != two[1]));
    }

    /// Every dtype of a file into every dtype of a variable, on views that share the variables' storage.
    #[test]
    fn what_is_loaded_is_cast_and_reaches_the_model() {
        let space = tempfile::tempdir().unwrap();
        let halves = [DType::F16, DType::BF16, DType::F32, DType::F64];
        for (from, to) in halves.iter().flat_map(|from| halves.map(|to| (*from, to))) {
            let [saved, loaded] = [(7, from), (8, to)].map(|(seed, dtype)| {
                let parameters = Parameters::new(seed);
                let vb = parameters.var_builder(dtype, &Device::Cpu);
                vb.get_with_hints((3, 5), "b.weight", Init::Randn { mean: 0.0, stdev: 1.0 }).unwrap();
                vb.get_with_hints(5, "a", Init::Const(0.5)).unwrap();
                parameters
            });
            let file = space.path().join("parameters.safetensors");
            saved.save(&file).unwrap();
            let view = loaded.frozen(to, &Device::Cpu).get((3, 5), "b.weight").unwrap();
            loaded.load(&file).unwrap();
            let values = |x: &Tensor| x.to_dtype(DType::F64).unwrap().to_vec2::<f64>().unwrap();
            let [_, (_, expected)] = &saved.vars()[..] else { panic!("two variables") };
            assert_eq!(values(&view), values(&expected.to_dtype(to).unwrap()), "{from:?} to {to:?}");
            assert_eq!(loaded.all_vars().iter().map(|var| var.rank()).collect::<Vec<_>>(), [1, 2]);
        }
        assert_eq!(std::fs::read_dir(space.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_does_not_fit_is_named_and_nothing_is_changed() {
        let space = tempfile::tempdir().unwrap();
        let file = space.path().join("parameters.safetensors");
        let parameters = Parameters::new(7);
        let vb = parameters.var_builder(DType::F32, &Device::Cpu);
        for (name, size) in [("a", 2), ("b", 3), ("c", 4)] {
            vb.get_with_hints(size, name, Init::Const(1.0)).unwrap();
        }
        let wrong = |tensors: &[(&str, Tensor)]| {
            let tensors = tensors.iter().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
            tensor_file::save(&file, &tensors).unwrap();
            let error = parameters.load(&file).unwrap_err().to_string();
            assert!(parameters.vars().iter().all(|(_, var)| var.to_vec1::<f32>().unwrap()[0] == 1.0));
            error
        };
        let zeros = |size: usize, dtype: DType| Tensor::zeros(size, dtype, &Device::Cpu).unwrap();
        let error = wrong(&[("a", zeros(2, DType::F32)), ("b", zeros(4, DType::F32)), ("d", zeros(4, DType::F32))]);
        assert!(
            error.contains("expected b of shape [3], got [4]; c of shape [4] is missing; d is left over"),
            "{error}"
        );
        let [a, b] = [("a", zeros(2, DType::F32)), ("b", zeros(3, DType::F32))];
        let error = wrong(&[a, b, ("c", zeros(4, DType::U32))]);
        assert!(error.contains("expected c in F16, BF16, F32 or F64, got U32"), "{error}");
        for bytes in [&b"not a safetensors file"[..], b""] {
            std::fs::write(&file, bytes).unwrap();
            assert!(parameters.load(&file).unwrap_err().to_string().contains("parameters.safetensors"));
        }
        let nowhere = space.path().join("no folder").join("file");
        assert!(parameters.save(&nowhere).unwrap_err().to_string().contains("no folder"));
    }

    /// The test vectors of the hash's authors: <http://www.isthe.com/chongo/tech/comp/fnv/>.
    #[test]
    fn the_hash_of_a_name_is_fnv_1a() {
        for (name, hash) in [("", 0xcbf29ce484222325), ("a", 0xaf63dc4c8601ec8c), ("foobar", 0x85944171f73967e8)] {
            assert_eq!(name_hash(name), hash, "{name}");
        }
    }
}
