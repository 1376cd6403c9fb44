//! The pickle of a PyTorch state dict, interpreted without executing anything.
//!
//! Only the opcodes that `torch.save` emits for a state dict are understood, and only the
//! constructors of a state dict can be called. Values are plain data in an arena: nothing is
//! recursive, so that neither depth nor cycles of a hostile pickle matter, and memory is bounded
//! by the length of the pickle.

mod opcode;

use std::collections::HashMap;

/// Longest accepted pickle, in bytes; a tensor takes about 150.
const MAX_LENGTH: usize = 4 << 20;
/// Most dimensions of a tensor.
const MAX_RANK: usize = 8;

/// What went wrong: where in the pickle, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PickleError {
    /// Byte position after the opcode.
    pub position: usize,
    /// The reason.
    pub reason: String,
}

/// Element types of storages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StorageType {
    Float,
    Half,
    BFloat16,
    Double,
    Long,
    Int,
    Short,
    Char,
    Byte,
    Bool,
}

impl StorageType {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::Double | Self::Long => 8,
            Self::Float | Self::Int => 4,
            Self::Half | Self::BFloat16 | Self::Short => 2,
            Self::Char | Self::Byte | Self::Bool => 1,
        }
    }
}

/// A reference to an entry of the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    /// Element type.
    pub kind: StorageType,
    /// Name of the entry below `data/`.
    pub key: &'a str,
    /// Number of elements.
    pub elements: usize,
}

/// A view of a storage. Offset and strides count elements and are not checked against it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TensorView<'a> {
    /// The elements.
    pub storage: Storage<'a>,
    /// First element.
    pub offset: usize,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Steps, one a dimension.
    pub strides: Vec<usize>,
}

/// Reads a state dict: its tensors by name.
pub(super) fn state_dict(bytes: &[u8]) -> Result<Vec<(&str, TensorView<'_>)>, PickleError> {
    let mut machine = Machine::new(bytes);
    machine.run().map_err(|reason| PickleError {
        position: machine.position,
        reason,
    })
}

/// A callable or type that a pickle may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(StorageType),
}

impl Global {
    fn find(module: &str, name: &str) -> Result<Self, String> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "FloatStorage") => Self::Storage(StorageType::Float),
            ("torch", "HalfStorage") => Self::Storage(StorageType::Half),
            ("torch", "BFloat16Storage") => Self::Storage(StorageType::BFloat16),
            ("torch", "DoubleStorage") => Self::Storage(StorageType::Double),
            ("torch", "LongStorage") => Self::Storage(StorageType::Long),
            ("torch", "IntStorage") => Self::Storage(StorageType::Int),
            ("torch", "ShortStorage") => Self::Storage(StorageType::Short),
            ("torch", "CharStorage") => Self::Storage(StorageType::Char),
            ("torch", "ByteStorage") => Self::Storage(StorageType::Byte),
            ("torch", "BoolStorage") => Self::Storage(StorageType::Bool),
            _ => {
                return Err(format!(
                    "{module}.{name} is no part of a state dict; refused"
                ));
            }
        })
    }
}

/// A value on the stack. Containers are indices into the arena.
#[derive(Debug, Clone, Copy)]
enum Value<'a> {
    None,
    Bool,
    Int(i64),
    Text(&'a str),
    Global(Global),
    Storage(Storage<'a>),
    Tuple(usize),
    Dict(usize),
    Tensor(usize),
}

impl Value<'_> {
    fn kind(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "a boolean",
            Self::Int(_) => "an integer",
            Self::Text(_) => "a string",
            Self::Global(_) => "a class or function",
            Self::Storage(_) => "a storage",
            Self::Tuple(_) => "a tuple",
            Self::Dict(_) => "a dict",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// The state of the interpreter.
struct Machine<'a> {
    bytes: &'a [u8],
    position: usize,
    stack: Vec<Value<'a>>,
    /// Stack heights at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    tuples: Vec<Vec<Value<'a>>>,
    /// Keys of any kind but strings are dropped with their values: no state dict has them.
    dicts: Vec<Vec<(&'a str, Value<'a>)>>,
    tensors: Vec<TensorView<'a>>,
}

impl<'a> Machine<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            position: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            tuples: Vec::new(),
            dicts: Vec::new(),
            tensors: Vec::new(),
        }
    }

    fn run(&mut self) -> Result<Vec<(&'a str, TensorView<'a>)>, String> {
        if self.bytes.len() > MAX_LENGTH {
            return Err(format!("longer than {MAX_LENGTH} bytes"));
        }
        while !self.step()? {}
        let Value::Dict(dict) = self.pop()? else {
            return Err("must be a dict".into());
        };
        let entries = self.dicts[dict].iter().map(|&(name, value)| match value {
            Value::Tensor(tensor) => Ok((name, self.tensors[tensor].clone())),
            other => Err(format!(
                "entry {name:?} must be a tensor, is {}",
                other.kind()
            )),
        });
        entries.collect()
    }

    /// Executes one opcode; true at the end of the pickle.
    fn step(&mut self) -> Result<bool, String> {
        let value = match self.byte()? {
            opcode::PROTO => match self.byte()? {
                2..=4 => return Ok(false),
                version => return Err(format!("protocol must be 2 to 4, is {version}")),
            },
            opcode::FRAME => {
                self.take(8)?;
                return Ok(false);
            }
            opcode::STOP => return Ok(true),
            opcode::MARK => {
                self.marks.push(self.stack.len());
                return Ok(false);
            }
            opcode::NONE => Value::None,
            opcode::NEWTRUE | opcode::NEWFALSE => Value::Bool,
            opcode::BININT => Value::Int(i32::from_le_bytes(self.array()?).into()),
            opcode::BININT1 => Value::Int(self.byte()?.into()),
            opcode::BININT2 => Value::Int(u16::from_le_bytes(self.array()?).into()),
            opcode::LONG1 => self.long()?,
            opcode::SHORT_BINUNICODE => {
                let length = self.byte()?;
                Value::Text(self.text(length.into())?)
            }
            opcode::BINUNICODE => {
                let length = u32::from_le_bytes(self.array()?);
                Value::Text(self.text(length.into())?)
            }
            opcode::BINUNICODE8 => {
                let length = u64::from_le_bytes(self.array()?);
                Value::Text(self.text(length)?)
            }
            opcode::EMPTY_DICT => self.new_dict(),
            opcode::EMPTY_TUPLE => self.new_tuple(Vec::new()),
            opcode::TUPLE => {
                let items = self.pop_to_mark()?;
                self.new_tuple(items)
            }
            opcode::TUPLE1 => self.short_tuple(1)?,
            opcode::TUPLE2 => self.short_tuple(2)?,
            opcode::TUPLE3 => self.short_tuple(3)?,
            opcode::GLOBAL => {
                let module = self.line()?;
                Value::Global(Global::find(module, self.line()?)?)
            }
            opcode::STACK_GLOBAL => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => {
                    Value::Global(Global::find(module, name)?)
                }
                _ => return Err("STACK_GLOBAL needs two strings".into()),
            },
            opcode::REDUCE => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.call(callable, arguments)?
            }
            opcode::BINPERSID => self.persistent_id()?,
            opcode::BINGET => {
                let slot = self.byte()?;
                self.recall(slot.into())?
            }
            opcode::LONG_BINGET => {
                let slot = u32::from_le_bytes(self.array()?);
                self.recall(slot)?
            }
            opcode::BINPUT => {
                let slot = self.byte()?;
                return self.memoize(slot.into());
            }
            opcode::LONG_BINPUT => {
                let slot = u32::from_le_bytes(self.array()?);
                return self.memoize(slot);
            }
            opcode::MEMOIZE => return self.memoize(self.memo.len() as u32),
            opcode::SETITEM => {
                let (value, key) = (self.pop()?, self.pop()?);
                return self.set_items(&[key, value]);
            }
            opcode::SETITEMS => {
                let items = self.pop_to_mark()?;
                return self.set_items(&items);
            }
            opcode::BUILD => {
                // Attributes of an OrderedDict, such as `_metadata`, are no weights.
                self.pop()?;
                return match self.top()? {
                    Value::Dict(_) => Ok(false),
                    other => Err(format!("attributes set on {}; refused", other.kind())),
                };
            }
            other => return Err(format!("opcode 0x{other:02x} is no part of a state dict")),
        };
        self.stack.push(value);
        Ok(false)
    }

    fn call(&mut self, callable: Value<'a>, arguments: Value<'a>) -> Result<Value<'a>, String> {
        let (Value::Global(callable), Value::Tuple(arguments)) = (callable, arguments) else {
            return Err(format!("{} called; refused", callable.kind()));
        };
        match (callable, self.tuples[arguments].as_slice()) {
            (Global::OrderedDict, []) => Ok(self.new_dict()),
            (Global::RebuildParameter, [tensor @ Value::Tensor(_), ..]) => Ok(*tensor),
            (
                Global::RebuildTensor,
                &[
                    Value::Storage(storage),
                    Value::Int(offset),
                    Value::Tuple(shape),
                    Value::Tuple(strides),
                    ..,
                ],
            ) => {
                let tensor = TensorView {
                    storage,
                    offset: count(offset)?,
                    shape: self.counts(shape)?,
                    strides: self.counts(strides)?,
                };
                if tensor.shape.len() != tensor.strides.len() {
                    return Err("a tensor needs as many strides as dimensions".into());
                }
                self.tensors.push(tensor);
                Ok(Value::Tensor(self.tensors.len() - 1))
            }
            (callable, _) => Err(format!(
                "{callable:?} called with unknown arguments; refused"
            )),
        }
    }

    fn persistent_id(&mut self) -> Result<Value<'a>, String> {
        if let Value::Tuple(id) = self.pop()?
            && let &[
                Value::Text("storage"),
                Value::Global(Global::Storage(kind)),
                Value::Text(key),
                Value::Text(_),
                Value::Int(elements),
            ] = self.tuples[id].as_slice()
        {
            let elements = count(elements)?;
            return Ok(Value::Storage(Storage {
                kind,
                key,
                elements,
            }));
        }
        Err("a persistent id that is no storage".into())
    }

    fn counts(&self, tuple: usize) -> Result<Vec<usize>, String> {
        let items = &self.tuples[tuple];
        if items.len() > MAX_RANK {
            return Err(format!("a tensor of more than {MAX_RANK} dimensions"));
        }
        let number = |item: &Value<'_>| match item {
            Value::Int(number) => count(*number),
            other => Err(format!(
                "a dimension must be an integer, is {}",
                other.kind()
            )),
        };
        items.iter().map(number).collect()
    }

    fn set_items(&mut self, items: &[Value<'a>]) -> Result<bool, String> {
        let Value::Dict(dict) = self.top()? else {
            return Err("items set on something that is no dict".into());
        };
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err("a key without a value".into());
        };
        for &[key, value] in pairs {
            if let Value::Text(key) = key {
                self.dicts[dict].push((key, value));
            }
        }
        Ok(false)
    }

    fn new_dict(&mut self) -> Value<'a> {
        self.dicts.push(Vec::new());
        Value::Dict(self.dicts.len() - 1)
    }

    fn new_tuple(&mut self, items: Vec<Value<'a>>) -> Value<'a> {
        self.tuples.push(items);
        Value::Tuple(self.tuples.len() - 1)
    }

    fn short_tuple(&mut self, length: usize) -> Result<Value<'a>, String> {
        let start = self.stack.len().checked_sub(length);
        let start = start
            .filter(|start| *start >= self.floor())
            .ok_or("stack underflow")?;
        let items = self.stack.split_off(start);
        Ok(self.new_tuple(items))
    }

    fn memoize(&mut self, slot: u32) -> Result<bool, String> {
        let value = self.top()?;
        self.memo.insert(slot, value);
        Ok(false)
    }

    fn recall(&self, slot: u32) -> Result<Value<'a>, String> {
        let value = self.memo.get(&slot).copied();
        value.ok_or_else(|| format!("memo slot {slot} is empty"))
    }

    /// The height below which the innermost mark protects the stack.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Value<'a>, String> {
        let items = self.stack.get(self.floor()..);
        items
            .and_then(<[_]>::last)
            .copied()
            .ok_or_else(|| "stack underflow".into())
    }

    fn pop(&mut self) -> Result<Value<'a>, String> {
        let value = self.top()?;
        self.stack.pop();
        Ok(value)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Value<'a>>, String> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(mark))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.position..];
        let taken = usize::try_from(length)
            .ok()
            .and_then(|length| rest.get(..length))
            .ok_or("the pickle is truncated")?;
        self.position += taken.len();
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        self.array().map(|[byte]| byte)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let taken = self.take(N as u64)?;
        taken.try_into().map_err(|_| "truncated".into())
    }

    fn text(&mut self, length: u64) -> Result<&'a str, String> {
        std::str::from_utf8(self.take(length)?).map_err(|error| error.to_string())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.position..];
        let end = rest.iter().position(|&byte| byte == b'\n');
        let line = self.text(end.ok_or("the pickle is truncated")? as u64)?;
        self.position += 1;
        Ok(line)
    }

    /// A little-endian two's complement number of up to eight bytes.
    fn long(&mut self) -> Result<Value<'a>, String> {
        let length = self.byte()?;
        let digits = self.take(length.into())?;
        let sign = digits.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut wide = [if sign { 0xff } else { 0 }; 8];
        wide.get_mut(..digits.len())
            .ok_or("an integer of more than 64 bits")?
            .copy_from_slice(digits);
        Ok(Value::Int(i64::from_le_bytes(wide)))
    }
}

/// A number of elements.
fn count(number: i64) -> Result<usize, String> {
    usize::try_from(number).map_err(|_| format!("a size must not be negative, is {number}"))
}

#[cfg(test)]
mod tests;
