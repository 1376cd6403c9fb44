//! The denoising loop of one picture.

use crate::{
    Result,
    model::{
        flow::Schedule,
        flux::{BATCH, Conditions, Flux, FluxRun},
    },
    ops::ImageOps,
};

/// Latents on their way from noise to a picture, one Euler step at a time.
pub struct Denoise<'a, O: ImageOps> {
    ops: &'a O,
    run: FluxRun<'a, O>,
    schedule: Schedule,
    cfg_scale: f32,
    step: usize,
    latents: Vec<f32>,
    input: O::Buffer,
    output: O::Buffer,
    velocities: Vec<f32>,
    guided: Vec<f32>,
}

impl<'a, O: ImageOps> Denoise<'a, O> {
    /// Starts at packed `latents` `[H·W, in_channels]`.
    ///
    /// # Errors
    /// What the device says.
    pub fn new(
        ops: &'a O,
        flux: &'a Flux<O>,
        conditions: &Conditions<'_, O>,
        schedule: Schedule,
        cfg_scale: f32,
        latents: Vec<f32>,
    ) -> Result<Self> {
        Ok(Self {
            ops,
            run: FluxRun::new(ops, flux, conditions)?,
            schedule,
            cfg_scale,
            step: 0,
            input: ops.buffer(latents.len())?,
            output: ops.buffer(BATCH * latents.len())?,
            velocities: vec![0.0; BATCH * latents.len()],
            guided: vec![0.0; latents.len()],
            latents,
        })
    }

    /// Steps of the picture.
    pub fn steps(&self) -> usize {
        self.schedule.steps()
    }

    /// The step that [`Denoise::advance`] takes next, from 0; `None` when all are taken.
    pub fn next_step(&self) -> Option<usize> {
        (self.step < self.steps()).then_some(self.step)
    }

    /// Takes the next step, if there is one.
    ///
    /// # Errors
    /// What the device says.
    pub fn advance(&mut self) -> Result<()> {
        let Some(step) = self.next_step() else {
            return Ok(());
        };
        self.ops.write(&self.latents, &mut self.input)?;
        self.run
            .velocity(&self.input, self.schedule.timesteps[step], &mut self.output)?;
        self.velocities = self.ops.download(&self.output)?;

        let distance = self.schedule.sigmas[step + 1] - self.schedule.sigmas[step];
        let (cond, uncond) = self.velocities.split_at(self.latents.len());
        for (guided, (cond, uncond)) in self.guided.iter_mut().zip(cond.iter().zip(uncond)) {
            *guided = uncond + self.cfg_scale * (cond - uncond);
        }
        for (latent, velocity) in self.latents.iter_mut().zip(&self.guided) {
            *latent += distance * velocity;
        }
        self.step += 1;
        Ok(())
    }

    /// The packed latents `[H·W, in_channels]` after the last step taken.
    pub fn latents(&self) -> &[f32] {
        &self.latents
    }

    /// The last step's velocities: with the prompt, and without.
    pub fn velocities(&self) -> (&[f32], &[f32]) {
        self.velocities.split_at(self.latents.len())
    }

    /// The last step's velocity after guidance.
    pub fn guided(&self) -> &[f32] {
        &self.guided
    }

    /// The noise levels.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }
}
