//! A process that develops tokens into pictures, and reads pictures as tokens.

use std::{path::PathBuf, sync::Arc};

use clap::Args;
use tokio::sync::{oneshot, watch};
use tonic::service::Routes;
use tracing::{Instrument, info_span};
use xomni_cluster::record::{Role, WorkerRecord, WorkerState};
use xomni_engine::{
    Result,
    checkpoint::XOmniConfig,
    decode::{PictureDecoder, PictureEncoder},
    ops::cpu::Cpu,
    text::Grid,
};
use xomni_proto::{PROTOCOL_VERSION, worker::decoder_server::SERVICE_NAME};

use super::arguments::{Common, worker_id};
use crate::{
    api::{DecodeEvent, DecodeJob, Decoder, worker_gone},
    convert::{Identity, Standing},
    decoder::{LocalDecoder, LocalEncoder},
    fingerprint,
    process::{Listener, Metrics, Presence, Signals, announce, die_with_parent, on_thread},
    serve::decoder_service,
    telemetry::Telemetry,
};

/// Arguments of `xomni-worker decoder`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// FLUX.1-dev directory (text encoders, VAE, scheduler)
    #[arg(long, value_name = "DIR")]
    flux: PathBuf,
    /// Jobs that may wait
    #[arg(long, value_name = "JOBS", default_value_t = 64)]
    max_queue: usize,
}

/// Serves until a signal ends it.
///
/// # Errors
/// What kept it from loading or from serving.
pub async fn run(arguments: Arguments) -> Result<()> {
    let _telemetry = Telemetry::start("xomni-decoder");
    if arguments.common.die_with_parent {
        die_with_parent()?;
    }
    let mut signals = Signals::catch()?;
    // What cannot be listened at is told at once, and not after all is loaded.
    let common = &arguments.common;
    let listener = common.tls.listen("--listen", common.listen).await?;
    tokio::select! {
        warm = warm_up(&arguments) => serve(common, listener, warm?, signals).await,
        signal = signals.next() => {
            tracing::info!(signal, "ends before it served");
            Ok(())
        }
    }
}

/// What has been loaded and has worked once.
struct Warm {
    decoder: LocalDecoder,
    encoder: LocalEncoder<Cpu>,
    model: String,
    fingerprint: String,
}

async fn warm_up(arguments: &Arguments) -> Result<Warm> {
    let Arguments {
        common,
        flux,
        max_queue,
    } = arguments;
    let (model, flux, max_queue) = (common.model.clone(), flux.clone(), *max_queue);
    let (name, source) = (common.served_name()?, common.source()?);
    let load = move || {
        let ops = Arc::new(Cpu::new());
        let config = XOmniConfig::open(&model)?;
        let numerics = format!("f32-cpu-{}", ops.isa());
        let fingerprint = fingerprint::pictures(&model, &flux, source, &numerics)?;
        let encoder = PictureEncoder::open(ops.clone(), &model, &config, source)?;
        let decoder = PictureDecoder::open(ops, &model, &flux, &config, source)?;
        Ok(Warm {
            decoder: LocalDecoder::bounded(Arc::new(decoder), max_queue)?,
            encoder: LocalEncoder::new(Arc::new(encoder), max_queue),
            model: name,
            fingerprint,
        })
    };
    let warm = on_thread("load", load).await?;
    let warm_up = info_span!("warm-up");
    develop_one(&warm.decoder).instrument(warm_up).await?;
    Ok(warm)
}

/// Develops the smallest picture, so that the first caller does not wait for what is done once.
async fn develop_one(decoder: &LocalDecoder) -> Result<()> {
    let grid = Grid::new(1, 1);
    let job = DecodeJob {
        request_id: "warm-up".into(),
        attempt: 0,
        prompt: String::new(),
        grid,
        seed: 0,
        image_index: 0,
        steps: Some(1),
    };
    let (sender, codes) = oneshot::channel();
    let mut events = decoder.decode(job, codes).await?;
    // A decoder that is gone says so in its events.
    let _ = sender.send(vec![0; grid.tokens()]);
    loop {
        match events.next().await? {
            Some(DecodeEvent::Progress(_)) => {}
            Some(DecodeEvent::Png(_)) => return Ok(()),
            None => return Err(worker_gone("decoder")),
        }
    }
}

async fn serve(
    common: &Common,
    listener: Listener,
    warm: Warm,
    mut signals: Signals,
) -> Result<()> {
    let address = common.advertised(listener.address())?;
    let metrics = serve_metrics(common, &warm.decoder).await?;
    let cluster = common.cluster()?;
    let standing = watch::Sender::new(Standing::ready(0));
    let record = WorkerRecord {
        id: worker_id("decoder"),
        address: address.clone(),
        protocol_version: PROTOCOL_VERSION,
        model: warm.model.clone(),
        fingerprint: warm.fingerprint.clone(),
        state: WorkerState::Ready,
        role: Role::Decoder,
        load: warm.decoder.load(),
    };
    let identity = Identity {
        model: warm.model,
        fingerprint: warm.fingerprint,
        weights_version: String::new(),
        vocabulary: 0,
        standing: standing.subscribe(),
    };
    let decoder = Arc::new(warm.decoder);
    let (presence, health) = Presence::new(record, standing, cluster.as_ref(), SERVICE_NAME);
    let service = decoder_service(decoder.clone(), Arc::new(warm.encoder), identity);
    let routes = Routes::new(service).add_service(health);
    announce("decoder", &address, metrics.as_ref().map(Metrics::url));
    let stop = async {
        let signal = signals.next().await;
        tracing::info!(signal, "drains");
        presence.drain();
    };
    let drained = tokio::select! {
        drained = listener.serve(routes, stop, common.drain()) => drained,
        never = presence.keep_measuring(|| decoder.load()) => match never {},
    };
    presence.withdraw().await;
    drained.map(|_| ())
}

async fn serve_metrics(common: &Common, decoder: &LocalDecoder) -> Result<Option<Metrics>> {
    let Some(address) = common.metrics else {
        return Ok(None);
    };
    let listener = common.tls.listen("--metrics", address).await?;
    let mut registry = Metrics::registry();
    decoder.meter().register(&mut registry);
    Ok(Some(Metrics::serve(listener, Arc::new(registry))))
}
