"""Training scripts in the style of public tutorials, for Keras 3 with GradientTape; each takes one line more.

A script gets `on` and puts it where a reader would put that line: `@on` on its step, `on.fit()` into the callbacks
of model.fit, `on.each(name=optimizer)` for several optimizers. It returns what it trained.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers


def data(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def wgan_gp(on):
    """Five critic steps a generator step, each with a gradient penalty, in an overridden train_step."""
    generator = keras.Sequential([layers.Input((4,)), layers.Dense(8, activation="relu"), layers.Dense(6)])
    critic = keras.Sequential([layers.Input((6,)), layers.Dense(8), layers.LeakyReLU(), layers.Dense(1)])

    class WGAN(keras.Model):
        def __init__(self):
            super().__init__()
            self.generator, self.critic = generator, critic
            self.seed = keras.random.SeedGenerator(1)

        def compile(self, d_optimizer, g_optimizer):
            super().compile(jit_compile=False)
            self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

        def gradient_penalty(self, real, fake):
            alpha = keras.random.uniform((tf.shape(real)[0], 1), seed=self.seed)
            interpolated = real + alpha * (fake - real)
            with tf.GradientTape() as gp_tape:
                gp_tape.watch(interpolated)
                pred = self.critic(interpolated, training=True)
            grads = gp_tape.gradient(pred, [interpolated])[0]
            return tf.reduce_mean((tf.sqrt(tf.reduce_sum(tf.square(grads), axis=1) + 1e-8) - 1.0) ** 2)

        def train_step(self, real):
            for _ in range(5):
                noise = keras.random.normal((tf.shape(real)[0], 4), seed=self.seed)
                with tf.GradientTape() as tape:
                    fake = self.generator(noise, training=True)
                    cost = tf.reduce_mean(self.critic(fake)) - tf.reduce_mean(self.critic(real))
                    d_loss = cost + 10.0 * self.gradient_penalty(real, fake)
                d_gradient = tape.gradient(d_loss, self.critic.trainable_variables)
                self.d_optimizer.apply_gradients(zip(d_gradient, self.critic.trainable_variables))
            noise = keras.random.normal((tf.shape(real)[0], 4), seed=self.seed)
            with tf.GradientTape() as tape:
                g_loss = -tf.reduce_mean(self.critic(self.generator(noise, training=True), training=True))
            gen_gradient = tape.gradient(g_loss, self.generator.trainable_variables)
            self.g_optimizer.apply_gradients(zip(gen_gradient, self.generator.trainable_variables))
            return {"d_loss": d_loss, "g_loss": g_loss}

    wgan = WGAN()
    d_optimizer = keras.optimizers.Adam(0.0002, beta_1=0.5, beta_2=0.9)
    g_optimizer = keras.optimizers.Adam(0.0002, beta_1=0.5, beta_2=0.9)
    wgan.compile(d_optimizer, g_optimizer)
    callbacks = on.fit(d=d_optimizer, g=g_optimizer)
    wgan.fit(data(16, 6), batch_size=8, epochs=2, verbose=0, callbacks=callbacks)
    return [generator, critic], {"d": 20, "g": 4}


def dcgan(on):
    """Two tapes, two optimizers, one tf.function."""
    generator = keras.Sequential([layers.Input((4,)), layers.Dense(16), layers.Reshape((4, 4, 1))])
    discriminator = keras.Sequential(
        [
            layers.Input((4, 4, 1)),
            layers.Conv2D(2, 3, padding="same"),
            layers.LeakyReLU(),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True)
    generator_optimizer, discriminator_optimizer = keras.optimizers.Adam(1e-4), keras.optimizers.Adam(1e-4)

    @on.each(generator=generator_optimizer, discriminator=discriminator_optimizer)
    @tf.function
    def train_step(images, noise):
        with tf.GradientTape() as gen_tape, tf.GradientTape() as disc_tape:
            generated = generator(noise, training=True)
            real_output = discriminator(images, training=True)
            fake_output = discriminator(generated, training=True)
            gen_loss = cross_entropy(tf.ones_like(fake_output), fake_output)
            disc_loss = cross_entropy(tf.ones_like(real_output), real_output)
            disc_loss += cross_entropy(tf.zeros_like(fake_output), fake_output)
        gradients_of_generator = gen_tape.gradient(gen_loss, generator.trainable_variables)
        gradients_of_discriminator = disc_tape.gradient(disc_loss, discriminator.trainable_variables)
        generator_optimizer.apply_gradients(zip(gradients_of_generator, generator.trainable_variables))
        discriminator_optimizer.apply_gradients(zip(gradients_of_discriminator, discriminator.trainable_variables))

    for i in range(4):
        train_step(data(4, 4, 4, 1, seed=i), data(4, 4, seed=i))
    return [generator, discriminator], {"generator": 4, "discriminator": 4}


def vae(on):
    """A sampling layer with a seed, and metrics of its own."""

    class Sampling(layers.Layer):
        def __init__(self):
            super().__init__()
            self.seed_generator = keras.random.SeedGenerator(1337)

        def call(self, inputs):
            mean, log_var = inputs
            return mean + tf.exp(0.5 * log_var) * keras.random.normal(tf.shape(mean), seed=self.seed_generator)

    inputs = keras.Input((6,))
    mean, log_var = layers.Dense(2)(inputs), layers.Dense(2)(inputs)
    encoder = keras.Model(inputs, [mean, log_var, Sampling()([mean, log_var])])
    decoder = keras.Sequential([layers.Input((2,)), layers.Dense(6)])

    class VAE(keras.Model):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = encoder, decoder
            self.total_loss_tracker = keras.metrics.Mean(name="total_loss")

        @property
        def metrics(self):
            return [self.total_loss_tracker]

        def train_step(self, batch):
            with tf.GradientTape() as tape:
                z_mean, z_log_var, z = self.encoder(batch)
                reconstruction_loss = tf.reduce_mean(tf.reduce_sum(tf.square(batch - self.decoder(z)), axis=1))
                kl_loss = -0.5 * (1 + z_log_var - tf.square(z_mean) - tf.exp(z_log_var))
                total_loss = reconstruction_loss + tf.reduce_mean(tf.reduce_sum(kl_loss, axis=1))
            grads = tape.gradient(total_loss, self.trainable_weights)
            self.optimizer.apply_gradients(zip(grads, self.trainable_weights))
            self.total_loss_tracker.update_state(total_loss)
            return {"loss": self.total_loss_tracker.result()}

    model = VAE()
    model.compile(optimizer=keras.optimizers.Adam())
    model.fit(data(16, 6), epochs=2, batch_size=8, shuffle=False, verbose=0, callbacks=on.fit())
    return [model], {"": 4}


def actor_critic(on):
    """An eager tape over an episode whose length is not known before."""
    inputs = layers.Input((4,))
    common = layers.Dense(8, activation="relu")(inputs)
    model = keras.Model(inputs, [layers.Dense(2, activation="softmax")(common), layers.Dense(1)(common)])
    optimizer, huber = keras.optimizers.Adam(0.01), keras.losses.Huber()
    rng = np.random.default_rng(0)

    @on
    def train_episode(length):
        state, log_probs, values, rewards = data(4), [], [], []
        with tf.GradientTape() as tape:
            for _ in range(length):
                action_probs, value = model(tf.expand_dims(state, 0))
                action = int(rng.integers(2))
                log_probs.append(tf.math.log(action_probs[0, action]))
                values.append(value[0, 0])
                state, reward = rng.normal(size=4).astype("float32"), float(rng.normal())
                rewards.append(reward)
            returns = np.cumsum(rewards[::-1])[::-1]
            losses = []
            for log_prob, value, ret in zip(log_probs, values, returns):
                losses.append(-log_prob * (ret - value))
                losses.append(huber(tf.expand_dims(value, 0), tf.expand_dims(tf.constant(ret, tf.float32), 0)))
            loss_value = tf.add_n(losses)
        grads = tape.gradient(loss_value, model.trainable_variables)
        optimizer.apply_gradients(zip(grads, model.trainable_variables))

    for length in (3, 5, 4):
        train_episode(length)
    return [model], {"": 3}


def dqn(on):
    """A target network, and a step that is built where it is used."""

    def create_q_model():
        return keras.Sequential([layers.Input((4,)), layers.Dense(8, activation="relu"), layers.Dense(2)])

    model, model_target = create_q_model(), create_q_model()
    optimizer = keras.optimizers.Adam(learning_rate=0.00025, clipnorm=1.0)
    loss_function = keras.losses.Huber()

    @on
    @tf.function(jit_compile=True)
    def update(state_sample, action_sample, rewards_sample, state_next):
        future_rewards = model_target(state_next)
        updated_q_values = rewards_sample + 0.99 * tf.reduce_max(future_rewards, axis=1)
        masks = tf.one_hot(action_sample, 2)
        with tf.GradientTape() as tape:
            q_action = tf.reduce_sum(tf.multiply(model(state_sample), masks), axis=1)
            loss = loss_function(updated_q_values, q_action)
        grads = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(grads, model.trainable_variables))

    for i in range(5):
        update(data(8, 4, seed=i), np.arange(8, dtype="int32") % 2, data(8, seed=i), data(8, 4, seed=i + 1))
        if i % 2 == 0:
            model_target.set_weights(model.get_weights())
    return [model, model_target], {"": 5}


def metric_learning(on):
    """Similarities of a batch as logits, in an overridden train_step with the compiled loss."""

    class EmbeddingModel(keras.Model):
        def train_step(self, batch):
            if isinstance(batch, tuple):
                batch = batch[0]
            anchors, positives = batch[:, 0], batch[:, 1]
            with tf.GradientTape() as tape:
                anchor_embeddings, positive_embeddings = self(anchors, training=True), self(positives, training=True)
                similarities = tf.einsum("ae,pe->ap", anchor_embeddings, positive_embeddings) / 0.2
                sparse_labels = tf.range(tf.shape(anchors)[0])
                loss = self.compute_loss(y=sparse_labels, y_pred=similarities)
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply(gradients, self.trainable_variables)
            for metric in self.metrics:
                if metric.name == "loss":
                    metric.update_state(loss)
                else:
                    metric.update_state(sparse_labels, similarities)
            return {m.name: m.result() for m in self.metrics}

    inputs = layers.Input((6,))
    model = EmbeddingModel(inputs, layers.UnitNormalization()(layers.Dense(4)(inputs)))
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(data(16, 2, 6), epochs=2, batch_size=8, shuffle=False, verbose=0, callbacks=on.fit())
    return [model], {"": 4}


def distillation(on):
    """A student that learns from a frozen teacher, with its own compute_loss."""
    teacher = keras.Sequential([layers.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(3)])
    student = keras.Sequential([layers.Input((6,)), layers.Dense(3)])

    class Distiller(keras.Model):
        def __init__(self):
            super().__init__()
            self.teacher, self.student = teacher, student
            self.teacher.trainable = False

        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
            soft = tf.nn.softmax(self.teacher(x, training=False) / 3.0, axis=1)
            hard = keras.losses.sparse_categorical_crossentropy(y, y_pred, from_logits=True)
            return tf.reduce_mean(hard) + 9.0 * keras.losses.KLDivergence()(soft, tf.nn.softmax(y_pred / 3.0, axis=1))

        def call(self, x):
            return self.student(x)

    model = Distiller()
    model.compile(optimizer=keras.optimizers.Adam())
    y = np.arange(16) % 3
    model.fit(data(16, 6), y, epochs=2, batch_size=8, shuffle=False, verbose=0, callbacks=on.fit())
    return [student, teacher], {"": 4}


def text_generation(on):
    """A recurrent character model over a tf.data pipeline, with the training loop in Python."""
    ids = np.frombuffer(b"the quick brown fox jumps over the lazy dog " * 8, np.uint8).astype("int32") - 32
    dataset = tf.data.Dataset.from_tensor_slices(ids[: 33 * 10]).batch(33, drop_remainder=True)
    dataset = dataset.map(lambda chunk: (chunk[:-1], chunk[1:])).batch(5)
    model = keras.Sequential(
        [layers.Input((32,)), layers.Embedding(96, 4), layers.GRU(6, return_sequences=True), layers.Dense(96)]
    )
    optimizer = keras.optimizers.RMSprop(0.01)
    loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @on
    @tf.function
    def train_step(inputs, labels):
        with tf.GradientTape() as tape:
            loss = loss_fn(labels, model(inputs, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    for _ in range(2):
        for inputs, labels in dataset:
            train_step(inputs, labels)
    return [model], {"": 4}


def diffusion(on):
    """A noise predictor with a normaliser, a moving average of its weights, and AdamW."""

    class DiffusionModel(keras.Model):
        def __init__(self):
            super().__init__()
            self.normalizer = layers.Normalization()
            self.network = keras.Sequential([layers.Input((7,)), layers.Dense(8, activation="swish"), layers.Dense(6)])
            self.ema_network = keras.models.clone_model(self.network)
            self.seed = keras.random.SeedGenerator(3)

        def train_step(self, images):
            images = self.normalizer(images)
            noises = keras.random.normal(tf.shape(images), seed=self.seed)
            times = keras.random.uniform((tf.shape(images)[0], 1), seed=self.seed)
            noisy = tf.cos(times) * images + tf.sin(times) * noises
            with tf.GradientTape() as tape:
                pred_noises = self.network(tf.concat([noisy, times**2], axis=1), training=True)
                noise_loss = self.loss(noises, pred_noises)
            gradients = tape.gradient(noise_loss, self.network.trainable_weights)
            self.optimizer.apply_gradients(zip(gradients, self.network.trainable_weights))
            for weight, ema_weight in zip(self.network.weights, self.ema_network.weights):
                ema_weight.assign(0.999 * ema_weight + 0.001 * weight)
            return {"n_loss": noise_loss}

    model = DiffusionModel()
    model.normalizer.adapt(data(16, 6))
    model.compile(optimizer=keras.optimizers.AdamW(1e-3, weight_decay=1e-4), loss=keras.losses.MeanAbsoluteError())
    model.fit(data(16, 6), epochs=2, batch_size=8, shuffle=False, verbose=0, callbacks=on.fit())
    return [model.network, model.ema_network], {"": 4}


def multi_task(on):
    """Two heads, two losses with weights, the built-in train_step."""
    inputs = layers.Input((6,))
    shared = layers.Dense(8, activation="relu")(inputs)
    model = keras.Model(
        inputs, {"price": layers.Dense(1, name="price")(shared), "kind": layers.Dense(3, name="kind")(shared)}
    )
    model.compile(
        optimizer="adam",
        loss={"price": "mse", "kind": keras.losses.SparseCategoricalCrossentropy(from_logits=True)},
        loss_weights={"price": 0.1, "kind": 1.0},
        metrics={"kind": "accuracy"},
    )
    y = {"price": data(16, 1), "kind": np.arange(16) % 3}
    model.fit(data(16, 6), y, epochs=2, batch_size=8, shuffle=False, verbose=0, callbacks=on.fit())
    return [model], {"": 4}


def transformer(on):
    """A learning rate schedule of its own, and a tf.function with an input_signature."""

    class CustomSchedule(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            step = tf.cast(step, tf.float32)
            return tf.math.rsqrt(8.0) * tf.math.minimum(tf.math.rsqrt(step + 1.0), step * (400**-1.5))

    tokens = layers.Input((None,), dtype="int32")
    x = layers.Embedding(20, 8, mask_zero=True)(tokens)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 4)(x, x))
    model = keras.Model(tokens, layers.Dense(20)(x))
    optimizer = keras.optimizers.Adam(CustomSchedule(), beta_1=0.9, beta_2=0.98, epsilon=1e-9)
    signature = [tf.TensorSpec((None, None), tf.int32), tf.TensorSpec((None, None), tf.int32)]

    @on
    @tf.function(input_signature=signature)
    def train_step(inp, tar):
        with tf.GradientTape() as tape:
            loss = keras.losses.sparse_categorical_crossentropy(tar, model(inp, training=True), from_logits=True)
            mask = tf.cast(tar != 0, loss.dtype)
            loss = tf.reduce_sum(loss * mask) / tf.reduce_sum(mask)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return loss

    rng = np.random.default_rng(0)
    for length in (5, 7, 5):
        batch = rng.integers(1, 20, (4, length)).astype("int32")
        train_step(batch, batch[:, ::-1].copy())
    return [model], {"": 3}


def maml(on):
    """Learning to learn: the outer tape goes through an inner gradient step, written by hand."""
    w, b = tf.Variable(data(4, 1)), tf.Variable([0.0])
    meta_optimizer = keras.optimizers.SGD(0.01)

    def forward(x, w, b):
        return x @ w + b

    @on
    @tf.function
    def meta_step(x_support, y_support, x_query, y_query):
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                inner.watch([w, b])
                inner_loss = tf.reduce_mean(tf.square(forward(x_support, w, b) - y_support))
            dw, db = inner.gradient(inner_loss, [w, b])
            outer_loss = tf.reduce_mean(tf.square(forward(x_query, w - 0.1 * dw, b - 0.1 * db) - y_query))
        grads = outer.gradient(outer_loss, [w, b])
        meta_optimizer.apply_gradients(zip(grads, [w, b]))
        return outer_loss

    for i in range(3):
        meta_step(data(8, 4, seed=i), data(8, 1, seed=i), data(8, 4, seed=i + 9), data(8, 1, seed=i + 9))
    return [w, b], {"": 3}


SCRIPTS = [
    wgan_gp,
    dcgan,
    vae,
    actor_critic,
    dqn,
    metric_learning,
    distillation,
    text_generation,
    diffusion,
    multi_task,
    transformer,
    maml,
]
