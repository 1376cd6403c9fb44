//! `cargo bench --features cuda --bench cuda_backbone -- [--rows 1,8,64,128] [--context 2656] [--layers 36]`: the
//! decode step of the published backbone on a GPU, with random weights. Validates, then times whole steps against the
//! bandwidth measured in the same run, then one step kernel by kernel.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use xomni_engine::{
    Error, Result,
    checkpoint::{BackboneConfig, Weights},
    model::backbone::Backbone,
    ops::{
        RowDraw, StepPlan, TransformerOps,
        cpu::Cpu,
        cuda::{Cuda, Kv, Precision},
    },
    parallel::{Shard, local_group},
    sampling::{Draw, SamplingParams},
    schedule::{Mode, TokenSource},
};

const BLOCK: usize = 16;
const SEED: u64 = 1;
/// The published script's settings.
const SAMPLING: SamplingParams = SamplingParams {
    temperature: 1.0,
    top_k: 50,
    top_p: 1.0,
    min_p: 0.03,
    guidance_scale: 1.0,
};

struct Arguments {
    rows: Vec<usize>,
    context: usize,
    layers: usize,
    steps: usize,
    dependent: bool,
}

fn published(layers: usize) -> BackboneConfig {
    BackboneConfig {
        text_vocab: 152_064,
        mm_vocab: 16_448,
        image_vocab: 16_384,
        hidden: 3584,
        intermediate: 18_944,
        layers,
        adapter_layers: layers.min(4),
        head_layers: (layers - layers.min(4)).min(4),
        heads: 28,
        kv_heads: 4,
        head_dim: 128,
        rms_norm_eps: 1e-6,
        rope_theta: 1e6,
        sliding_window: None,
        max_positions: 32_768,
    }
}

/// A backbone and what its steps need.
struct Engine<O: TransformerOps> {
    ops: Arc<O>,
    backbone: Backbone<O>,
    kv: O::Kv,
    rows: O::Rows,
}

impl<O: TransformerOps> Engine<O> {
    fn load(
        ops: O,
        config: &BackboneConfig,
        max_rows: usize,
        slots: usize,
        blocks: usize,
    ) -> Result<Self> {
        let (ops, alone) = (Arc::new(ops), Box::new(local_group(1).remove(0)));
        let mut weights = Weights::random(SEED, "backbone");
        let backbone = Backbone::load(
            ops.clone(),
            Shard::whole(),
            alone,
            config,
            &mut weights,
            max_rows,
        )?;
        let kv = backbone.kv_cache(blocks, BLOCK)?;
        let rows = backbone.rows(slots, BLOCK)?;
        Ok(Self {
            ops,
            backbone,
            kv,
            rows,
        })
    }

    fn launch(&mut self, plan: &StepPlan, recorded: bool) -> Result<()> {
        let Self {
            ops,
            backbone,
            kv,
            rows,
        } = self;
        ops.begin(plan, rows)?;
        ops.run(rows, recorded, &mut |rows| {
            backbone.forward(rows, kv, None)?;
            backbone.sample(rows, Mode::Image, &[])
        })
    }

    fn step(&mut self, plan: &StepPlan, recorded: bool) -> Result<Vec<u32>> {
        self.launch(plan, recorded)?;
        let drawn = self.ops.drawn(&mut self.rows)?;
        drawn
            .into_iter()
            .map(|drawn| {
                drawn
                    .map(|drawn| drawn.index)
                    .ok_or(Error::NotFinite { output: 0, n: 0 })
            })
            .collect()
    }

    /// Runs a step and returns the logits of its draws.
    fn logits(&mut self, plan: &StepPlan, recorded: bool) -> Result<Vec<f32>> {
        self.step(plan, recorded)?;
        self.backbone
            .read_logits(Mode::Image, plan.draws.image.len())
    }
}

/// One row of each of `rows` sequences at a position, to draw from. `admit` gives each its own blocks.
fn decode(
    rows: usize,
    position: usize,
    token: impl Fn(usize) -> TokenSource,
    n: u32,
    admit: bool,
) -> StepPlan {
    let blocks = position / BLOCK + 1;
    let table = |slot: usize| {
        (slot * blocks..(slot + 1) * blocks)
            .map(|block| block as u32)
            .collect()
    };
    let mut plan = StepPlan {
        admitted: (0..if admit { rows } else { 0 })
            .map(|slot| (slot as u32, table(slot)))
            .collect(),
        slots: (0..rows as u32).collect(),
        positions: vec![position as u32; rows],
        tokens: (0..rows).map(token).collect(),
        ..StepPlan::default()
    };
    plan.picked.image = (0..rows as u32).collect();
    plan.draws.image = (0..rows)
        .map(|row| RowDraw {
            row,
            uncond_row: None,
            slots: (row as u32, None),
            place: row,
            draw: Draw {
                params: SAMPLING,
                seed: row as u64,
                image_index: 0,
                n,
                log_prob: false,
            },
        })
        .collect();
    plan
}

/// Logits against the CPU's on a small layer count; equal bits alone and in a batch; two runs equal.
fn validate(dependent: bool) -> Result<()> {
    let config = BackboneConfig {
        text_vocab: 1024,
        ..published(3)
    };
    let rows = 24;
    // Three steps from nothing, so that later ones read the cache.
    let plan = |rows: usize, position: usize, from: usize| {
        let token = |row: usize| {
            TokenSource::Known((1000 + (row + from) * 700 + position * 13) as u32 % 17_000)
        };
        decode(rows, position, token, 0, true)
    };
    let run = |engine: &mut dyn FnMut(&StepPlan) -> Result<Vec<f32>>, rows, from| {
        // Blocks must stay the same while positions grow: all fit into one block.
        (0..3)
            .map(|position| engine(&plan(rows, position, from)))
            .collect::<Result<Vec<_>>>()
    };
    let cuda = Cuda::open(0, Precision::Bf16)?.with_dependent_launch(dependent);
    let mut gpu = Engine::load(cuda, &config, 64, 64, 64)?;
    let mut cpu = Engine::load(Cpu::new(), &config, 64, 64, 64)?;
    let want = run(&mut |plan| cpu.logits(plan, false), 4, 0)?;
    let batch = run(&mut |plan| gpu.logits(plan, true), rows, 0)?;
    let width = config.image_vocab;
    let (mut difference, mut size) = (0.0, 0.0);
    for (got, want) in batch.iter().zip(&want) {
        for (got, want) in got.iter().zip(want) {
            difference += f64::from(got - want).powi(2);
            size += f64::from(*want).powi(2);
        }
    }
    let error = (difference / size).sqrt();
    let same = |a: &[Vec<f32>], b: &[Vec<f32>]| {
        let bits = |v: &[Vec<f32>]| v.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
        bits(a) == bits(b)
    };
    let again = run(&mut |plan| gpu.logits(plan, true), rows, 0)?;
    let alone = run(&mut |plan| gpu.logits(plan, true), 1, 5)?;
    let of_batch: Vec<_> = batch
        .iter()
        .map(|logits| logits[5 * width..6 * width].to_vec())
        .collect();
    println!("validation: logits of 3 layers differ from the CPU's by {error:.2e} (rms, relative)");
    println!(
        "validation: two runs equal: {}, alone as in a batch: {}",
        same(&batch, &again),
        same(&alone, &of_batch)
    );
    if error > 2e-2 || !same(&batch, &again) || !same(&alone, &of_batch) {
        return Err(Error::Unsupported {
            what: "validation".into(),
            reason: "failed".into(),
        });
    }
    Ok(())
}

/// Bytes that a step must read: every weight once, every live key and value once.
fn bytes(config: &BackboneConfig, rows: usize, context: usize, kv: &Kv) -> f64 {
    let (c, d) = (config.hidden, config.head_dim);
    let attention = (config.heads + 2 * config.kv_heads) * d * c + config.heads * d * c;
    let layer = attention + 3 * c * config.intermediate;
    let weights = 2 * (config.layers * layer + config.image_vocab * c);
    (weights + rows * context * kv.position_bytes()) as f64
}

fn time_steps(engine: &mut Engine<Cuda>, arguments: &Arguments, rows: usize) -> Result<(f64, f64)> {
    let position = arguments.context - 1;
    let known = |row: usize| TokenSource::Known(152_064 + row as u32);
    engine.step(&decode(rows, position, known, 0, true), true)?;
    let drawn = |_| TokenSource::Drawn;
    for n in 1..4 {
        engine.step(&decode(rows, position, drawn, n, false), true)?;
    }
    let cpu = cpu_time();
    let begin = Instant::now();
    let mut in_flight = 0;
    for n in 0..arguments.steps {
        engine.launch(&decode(rows, position, drawn, n as u32, false), true)?;
        in_flight += 1;
        if in_flight == 2 {
            engine.ops.drawn(&mut engine.rows)?;
            in_flight -= 1;
        }
    }
    for _ in 0..in_flight {
        engine.ops.drawn(&mut engine.rows)?;
    }
    let wall = begin.elapsed();
    let busy = (cpu_time().saturating_sub(cpu)).as_secs_f64() / wall.as_secs_f64();
    Ok((wall.as_secs_f64() * 1e3 / arguments.steps as f64, busy))
}

/// Processor time of the process (Linux; zero elsewhere).
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or("")
        .split_whitespace()
        .collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse().ok())
            .unwrap_or(0u64)
    };
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

fn kernel_table(engine: &mut Engine<Cuda>, arguments: &Arguments, rows: usize) -> Result<()> {
    let position = arguments.context - 1;
    let plan = decode(rows, position, |_| TokenSource::Drawn, 0, false);
    let ops = engine.ops.clone();
    let mut runs: Vec<Vec<(String, f32)>> = Vec::new();
    for _ in 0..5 {
        runs.push(ops.profile(|| engine.step(&plan, false).map(drop))?);
    }
    let mut sums: BTreeMap<&str, (usize, f32)> = BTreeMap::new();
    for (index, (name, _)) in runs[0].iter().enumerate() {
        let mut times: Vec<f32> = runs.iter().map(|run| run[index].1).collect();
        times.sort_by(f32::total_cmp);
        let entry = sums.entry(name).or_default();
        entry.0 += 1;
        entry.1 += times[times.len() / 2];
    }
    println!(
        "\n{rows} rows, kernel by kernel (each alone, between events):\n\n| kernel | launches | ms | µs each |\n|---|---|---|---|"
    );
    let mut all: Vec<_> = sums.into_iter().collect();
    all.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    for (name, (count, time)) in all {
        println!(
            "| {name} | {count} | {time:.3} | {:.1} |",
            time * 1e3 / count as f32
        );
    }
    Ok(())
}

fn run(arguments: &Arguments) -> Result<()> {
    validate(arguments.dependent)?;
    let config = published(arguments.layers);
    let cuda = Cuda::open(0, Precision::Bf16)?.with_dependent_launch(arguments.dependent);
    let (name, (_, total)) = (cuda.name()?, cuda.memory()?);
    let read = cuda.read_bandwidth(4 << 30, 11)?;
    println!("\n{name}: reads {:.3} TB/s\n", read / 1e12);
    let most = arguments.rows.iter().copied().max().unwrap_or(1);
    let blocks = most * arguments.context.div_ceil(BLOCK);
    let begin = Instant::now();
    let mut engine = Engine::load(cuda, &config, most, most, blocks)?;
    engine.ops.wait()?;
    println!(
        "loaded {} layers in {:.1} s",
        config.layers,
        begin.elapsed().as_secs_f64()
    );
    engine.kv.fill(&engine.ops)?;
    let (free, _) = engine.ops.memory()?;
    println!(
        "resident: {:.1} of {:.1} GiB\n",
        (total - free) as f64 / f64::from(1 << 30),
        total as f64 / f64::from(1 << 30)
    );
    println!(
        "| rows | ms a step | tokens/s | GB moved | TB/s | of the bandwidth | cores busy |\n|---|---|---|---|---|---|---|"
    );
    for &rows in &arguments.rows {
        let mut times = [
            time_steps(&mut engine, arguments, rows)?,
            time_steps(&mut engine, arguments, rows)?,
        ];
        times.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (ms, busy) = times[0];
        let bytes = bytes(&config, rows, arguments.context, &engine.kv);
        let rate = bytes / ms * 1e3;
        println!(
            "| {rows} | {ms:.3} (again {:.3}) | {:.0} | {:.2} | {:.3} | {:.1} % | {busy:.2} |",
            times[1].0,
            rows as f64 / ms * 1e3,
            bytes / 1e9,
            rate / 1e12,
            rate / read * 100.0
        );
    }
    for &rows in &arguments.rows {
        kernel_table(&mut engine, arguments, rows)?;
    }
    prefill(&mut engine)
}

/// A prompt of 512 tokens in steps of as many rows as there are.
fn prefill(engine: &mut Engine<Cuda>) -> Result<()> {
    let rows = engine.backbone.max_rows().min(512);
    let mut times = Vec::new();
    for _ in 0..3 {
        let begin = Instant::now();
        for first in (0..512).step_by(rows) {
            let plan = StepPlan {
                admitted: if first == 0 {
                    vec![(0, (0..32).collect())]
                } else {
                    vec![]
                },
                slots: vec![0; rows],
                positions: (first..first + rows).map(|p| p as u32).collect(),
                tokens: (first..first + rows)
                    .map(|p| TokenSource::Known(p as u32 * 7))
                    .collect(),
                ..StepPlan::default()
            };
            let Engine {
                ops,
                backbone,
                kv,
                rows,
            } = &mut *engine;
            ops.begin(&plan, rows)?;
            ops.run(rows, true, &mut |rows| backbone.forward(rows, kv, None))?;
            ops.drawn(rows)?;
        }
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    println!(
        "\nprefill of 512 tokens, {rows} rows a step: {:.1} ms",
        times[2]
    );
    Ok(())
}

fn main() {
    let mut arguments = Arguments {
        rows: vec![1, 8, 64, 128],
        context: 2656,
        layers: 36,
        steps: 40,
        dependent: true,
    };
    let mut given = std::env::args().skip(1);
    while let Some(name) = given.next() {
        let mut number = || {
            given
                .next()
                .and_then(|value| value.parse().ok())
                .expect("a number")
        };
        match name.as_str() {
            "--rows" => {
                let list = given.next().expect("a list");
                arguments.rows = list
                    .split(',')
                    .map(|n| n.parse().expect("a number"))
                    .collect();
            }
            "--context" => arguments.context = number(),
            "--layers" => arguments.layers = number(),
            "--steps" => arguments.steps = number(),
            "--independent" => arguments.dependent = false,
            // What cargo adds.
            "--bench" => {}
            other => panic!("unknown argument {other}"),
        }
    }
    if let Err(error) = run(&arguments) {
        eprintln!("error: {error}");
        std::process::exit(1);
    }
}
