"""Which of Hugging Face's training arguments a recipe may set, checked without importing them."""

from collections.abc import Iterable

from pipeline.core.arguments import closest

TRAINER_ARGUMENTS = (
    # steps
    *("max_steps", "gradient_accumulation_steps", "torch_empty_cache_steps"),
    # learning rate and optimizer
    *("lr_scheduler_type", "lr_scheduler_kwargs", "optim", "optim_args", "optim_target_modules"),
    *("adam_beta1", "adam_beta2", "adam_epsilon"),
    # arithmetic
    *("bf16", "fp16", "tf32", "full_determinism", "use_cpu"),
    *("torch_compile", "torch_compile_backend", "torch_compile_mode"),
    # logs
    *("logging_strategy", "logging_steps", "logging_first_step", "log_level", "log_level_replica"),
    *("report_to", "run_name", "project", "trackio_space_id", "debug", "skip_memory_metrics"),
    # validation
    *("eval_delay", "eval_on_start"),
    # processes
    *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
    *("ddp_static_graph", "ddp_timeout"),
)
"""Arguments of transformers.TrainingArguments that do here what they do there."""

_FIELDS = {
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "warmup_steps": "warmup_ratio",
    "warmup_ratio": "warmup_ratio",
    "max_grad_norm": "max_grad_norm",
    "label_smoothing_factor": "label_smoothing",
    "seed": "seed",
    "metric_for_best_model": "metric",
    "eval_strategy": "validate_every",
    "eval_steps": "validate_every",
    "save_strategy": "checkpoint_steps",
    "save_steps": "checkpoint_steps",
}
"""Theirs that a setting of ours stands for."""
_REASONS = {
    "output_dir": "--out says where the run is written",
    "load_best_model_at_end": "a run always has the weights of its best epoch",
    "greater_is_better": "`train.metric` knows which way is better",
    "save_total_limit": "the two newest checkpoints and the best weights are kept",
    "save_only_model": "a checkpoint is for going on, so it holds all",
    "save_safetensors": "nothing else than safetensors is written",
    "resume_from_checkpoint": "the same command goes on from the last checkpoint by itself",
    "ignore_data_skip": "a run that goes on gives the batches that an unbroken one would",
    "restore_callback_states_from_checkpoint": "they are always restored",
    "enable_jit_checkpoint": "set `train.checkpoint_minutes`",
    "disable_tqdm": "progress stands on stderr, a line an epoch where that is no terminal",
    "logging_nan_inf_filter": "a loss that diverged must show",
    "ddp_backend": "it is gloo on CPUs and nccl on GPUs",
    "gradient_checkpointing": "sessions are short: the scores, not the layers, take the memory",
    "activation_checkpointing": "sessions are short: the scores, not the layers, take the memory",
    "auto_find_batch_size": "another batch size is another training",
    "deepspeed": "checkpoints here are of whole weights",
    "fsdp": "checkpoints here are of whole weights",
    "fsdp_config": "checkpoints here are of whole weights",
}
"""Why others do not work here."""
_NO_USE = "it is for other data or other models and would do nothing here"


def check_trainer_arguments(names: Iterable[str], *, known: Iterable[str] = ()) -> None:
    """ValueError for the first name that a recipe may not set, or that is none.

    `known` are further names of Hugging Face's, which are told apart from misspelt ones.
    """
    for name in names:
        if name in TRAINER_ARGUMENTS:
            continue
        if name in _FIELDS:
            raise ValueError(f"`{name}` is `train.{_FIELDS[name]}` here; set that instead")
        if name in _REASONS:
            raise ValueError(f"leave out `{name}`: {_REASONS[name]}")
        if name in known or name in _OTHERS:
            raise ValueError(f"leave out `{name}`: {_NO_USE}")
        every = sorted({*TRAINER_ARGUMENTS, *_FIELDS, *_REASONS})
        raise ValueError(f"Hugging Face has no training argument `{name}`; {closest(name, every)}")


_OTHERS = frozenset(
    """
    accelerator_config activation_checkpointing_kwargs average_tokens_across_devices
    batch_eval_metrics bf16_full_eval data_seed dataloader_drop_last dataloader_in_order
    dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers
    dataloader_pin_memory dataloader_prefetch_factor do_eval do_predict do_train
    eval_accumulation_steps eval_do_concat_batches eval_use_gather_object fp16_full_eval
    gradient_checkpointing_kwargs hub_always_push hub_model_id hub_private_repo hub_revision
    hub_strategy hub_token include_for_metrics include_num_input_tokens_seen label_names
    length_column_name liger_kernel_config local_rank log_on_each_node neftune_noise_alpha
    parallelism_config per_device_eval_batch_size prediction_loss_only push_to_hub
    remove_unused_columns save_on_each_node train_sampling_strategy trackio_bucket_id
    trackio_static_space_id use_cache use_liger_kernel
    """.split()  # noqa: SIM905
)
