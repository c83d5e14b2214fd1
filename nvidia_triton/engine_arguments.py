"""The keys of `1/model.json`: the fields of vLLM's AsyncEngineArgs, which refuses every other one.

Read from the vLLM releases of CHECKED, those inside NVIDIA's Triton images 25.07 to 26.07. A copy of this module lies
beside the local stand-in backend, whose interpreter finds nothing else of this project: it imports the standard
library alone.
"""

import difflib
import re

# Image tag, without `-vllm-python-py3`, to the vLLM inside.
VLLM_OF_IMAGE = {
    "25.07": "0.9.0",
    "25.10": "0.10.2",
    "25.12": "0.11.1",
    "26.02": "0.15.1",
    "26.04": "0.19.0",
    "26.07": "0.24.0",
}
CHECKED = tuple(VLLM_OF_IMAGE.values())

# First and last release of CHECKED that know the keys.
_KEYS = {
    ("0.9.0", "0.24.0"): """
    additional_config allowed_local_media_path block_size calculate_kv_scales code_revision
    collect_detailed_traces compilation_config config_format cpu_offload_gb data_parallel_address
    data_parallel_rpc_port data_parallel_size data_parallel_size_local disable_cascade_attn
    disable_chunked_mm_input disable_custom_all_reduce disable_log_stats disable_sliding_window
    distributed_executor_backend download_dir dtype enable_chunked_prefill enable_expert_parallel
    enable_lora enable_prefix_caching enable_prompt_embeds enable_sleep_mode enforce_eager
    fully_sharded_loras generation_config gpu_memory_utilization hf_config_path hf_overrides hf_token
    ignore_patterns kv_cache_dtype kv_events_config kv_transfer_config limit_mm_per_prompt load_format
    long_prefill_token_threshold lora_dtype max_cpu_loras max_logprobs max_long_partial_prefills
    max_lora_rank max_loras max_model_len max_num_batched_tokens max_num_partial_prefills max_num_seqs
    max_parallel_loading_workers mm_processor_kwargs model model_impl model_loader_extra_config
    num_gpu_blocks_override otlp_traces_endpoint override_generation_config pipeline_parallel_size
    prefix_caching_hash_algo pt_load_map_location quantization ray_workers_use_nsight reasoning_parser
    revision scheduler_cls scheduling_policy seed served_model_name show_hidden_metrics_for_version
    skip_tokenizer_init speculative_config tensor_parallel_size tokenizer tokenizer_mode tokenizer_revision
    trust_remote_code use_tqdm_on_load worker_cls worker_extension_cls
    """,
    ("0.9.0", "0.15.1"): """
    logits_processor_pattern swap_space
    """,
    ("0.9.0", "0.11.1"): """
    cuda_graph_sizes disable_mm_preprocessor_cache guided_decoding_backend
    guided_decoding_disable_additional_properties guided_decoding_disable_any_whitespace
    guided_decoding_disable_fallback lora_extra_vocab_size num_lookahead_slots override_pooler_config task
    """,
    ("0.9.0", "0.10.2"): """
    disable_async_output_proc enable_lora_bias max_seq_len_to_capture preemption_mode rope_scaling
    rope_theta scheduler_delay_factor
    """,
    ("0.9.0", "0.9.0"): """
    device disable_log_requests enable_prompt_adapter enable_reasoning long_lora_scaling_factors
    max_prompt_adapter_token max_prompt_adapters multi_step_stream_outputs num_scheduler_steps
    override_neuron_config qlora_adapter_name_or_path tokenizer_pool_extra_config tokenizer_pool_size
    tokenizer_pool_type use_v2_block_manager
    """,
    ("0.10.2", "0.24.0"): """
    async_scheduling convert data_parallel_backend data_parallel_hybrid_lb data_parallel_rank
    data_parallel_start_rank decode_context_parallel_size default_mm_loras disable_hybrid_kv_cache_manager
    enable_eplb enable_log_requests eplb_config interleave_mm_strings io_processor_plugin
    kv_cache_memory_bytes kv_sharing_fast_prefill logits_processors logprobs_mode mamba_cache_dtype
    mamba_ssm_cache_dtype media_io_kwargs mm_encoder_tp_mode mm_processor_cache_gb override_attention_dtype
    runner safetensors_load_strategy skip_mm_profiling
    """,
    ("0.10.2", "0.11.1"): """
    enable_multimodal_encoder_data_parallel eplb_log_balancedness eplb_step_interval eplb_window_size
    num_redundant_experts
    """,
    ("0.11.1", "0.24.0"): """
    aggregate_engine_logging all2all_backend allowed_media_domains cudagraph_capture_sizes
    data_parallel_external_lb dbo_decode_token_threshold dbo_prefill_token_threshold
    dcp_kv_cache_interleave_size disable_nccl_for_dp_synchronization ec_transfer_config enable_dbo
    enable_mm_embeds expert_placement_strategy kv_offloading_backend kv_offloading_size mamba_block_size
    master_addr master_port max_cudagraph_capture_size mm_encoder_attn_backend mm_processor_cache_type
    mm_shm_cache_max_object_size_mb nnodes node_rank pooler_config reasoning_parser_plugin stream_interval
    structured_outputs_config tokens_only video_pruning_rate
    """,
    ("0.15.1", "0.24.0"): """
    allow_deprecated_quantization attention_backend attention_config cp_kv_cache_interleave_size
    cudagraph_metrics enable_layerwise_nvtx_tracing enable_logging_iteration_details enable_mfu_metrics
    enable_mm_processor_stats enable_return_routed_experts enable_tower_connector_lora kv_cache_metrics
    kv_cache_metrics_sample mamba_cache_mode mm_encoder_only model_weights optimization_level
    prefill_context_parallel_size profiler_config ubatch_size
    """,
    ("0.19.0", "0.24.0"): """
    cpu_offload_params dcp_comm_backend distributed_timeout_seconds enable_elastic_ep
    enable_ep_weight_filter enable_flashinfer_autotune fail_on_environ_validation gdn_prefill_backend
    kernel_config kv_cache_dtype_skip_layers language_model_only lora_target_modules mm_tensor_ipc
    moe_backend offload_backend offload_group_size offload_num_in_group offload_params offload_prefetch_step
    performance_mode reasoning_config renderer_num_workers scheduler_reserve_full_isl shutdown_timeout
    specialize_active_lora weight_transfer_config
    """,
    ("0.24.0", "0.24.0"): """
    cpu_distributed_timeout_seconds data_parallel_multi_port_external_lb device_ids diffusion_config
    enable_cumem_allocator enable_mamba_cache_stochastic_rounding enable_mixed_moe_lora_format
    ir_op_priority jit_monitor_verbose linear_backend mamba_backend mamba_cache_philox_rounds mamba_config
    mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_margin
    mm_encoder_fp8_scale_save_path numa_bind numa_bind_cpus numa_bind_nodes prefill_schedule_interval
    quantization_config safetensors_prefetch_block_size safetensors_prefetch_num_threads spec_method
    spec_model spec_tokens use_fp64_gumbel watermark
    """,
}
LIFETIMES = {key: lifetime for lifetime, keys in _KEYS.items() for key in keys.split()}


def vllm_of_image(image: str) -> str | None:
    """The vLLM inside an image, by its tag `26.02-vllm-python-py3`; None for one not listed above."""
    tag = re.search(r"(\d\d\.\d\d)-vllm", image)
    return VLLM_OF_IMAGE.get(tag[1]) if tag else None


def is_known(key: str, vllm: str) -> bool | None:
    """Whether a release of vLLM takes the key; None where the releases read here do not tell."""
    if key not in LIFETIMES:
        return None if _number(vllm) > _number(CHECKED[-1]) else False
    first, last = LIFETIMES[key]
    if _number(first) <= _number(vllm) <= _number(last):
        return True
    # The key came or went somewhere between two releases that were read.
    before = CHECKED[: CHECKED.index(first)][-1:]
    after = CHECKED[CHECKED.index(last) + 1 :][:1]
    gone = any(_number(vllm) >= _number(each) for each in after)
    not_yet = any(_number(vllm) <= _number(each) for each in before)
    return False if gone or not_yet else None


def lifetime_of(key: str) -> str:
    """In which releases a listed key exists, for a sentence: `from vLLM 0.10.2 on`, `up to vLLM 0.9.0`."""
    first, last = LIFETIMES[key]
    if last == CHECKED[-1]:
        return f"from vLLM {first} on"
    return f"up to vLLM {last}" if first == CHECKED[0] else f"from vLLM {first} to {last}"


def nearest(key: str, vllm: str | None = None) -> str | None:
    """The key somebody may have meant, of those that `vllm` takes."""
    known = [each for each in LIFETIMES if vllm is None or is_known(each, vllm) is not False]
    return next(iter(difflib.get_close_matches(key.lower().replace("-", "_"), known, 1, 0.75)), None)


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
