"""The keys that `model.json` may hold: vLLM's AsyncEngineArgs refuses every other one, so this does too."""

ENGINE_ARGUMENTS = frozenset(
    """
    additional_config aggregate_engine_logging all2all_backend allowed_local_media_path
    allowed_media_domains api_process_count api_process_rank async_scheduling attention_backend
    attention_config block_size calculate_kv_scales code_revision collect_detailed_traces compilation_config
    config_format convert cpu_offload_gb cudagraph_capture_sizes data_parallel_address data_parallel_backend
    data_parallel_rank data_parallel_rpc_port data_parallel_size data_parallel_size_local
    decode_context_parallel_size default_mm_loras disable_cascade_attn disable_chunked_mm_input
    disable_custom_all_reduce disable_hybrid_kv_cache_manager disable_log_stats disable_sliding_window
    distributed_executor_backend download_dir dtype enable_chunked_prefill enable_dbo enable_eplb
    enable_expert_parallel enable_log_requests enable_lora enable_mm_embeds enable_prefix_caching
    enable_prompt_embeds enable_sleep_mode enforce_eager eplb_config expert_placement_strategy
    fully_sharded_loras generation_config gpu_memory_utilization hf_config_path hf_overrides hf_token
    ignore_patterns interleave_mm_strings io_processor_plugin kv_cache_dtype kv_cache_memory_bytes
    kv_events_config kv_offloading_size kv_sharing_fast_prefill kv_transfer_config limit_mm_per_prompt
    load_format logits_processors logprobs_mode long_prefill_token_threshold lora_dtype mamba_block_size
    mamba_cache_dtype mamba_ssm_cache_dtype max_cpu_loras max_cudagraph_capture_size max_logprobs
    max_long_partial_prefills max_lora_rank max_loras max_model_len max_num_batched_tokens
    max_num_partial_prefills max_num_seqs max_parallel_loading_workers media_io_kwargs
    mm_encoder_attn_backend mm_encoder_tp_mode mm_processor_cache_gb mm_processor_cache_type
    mm_processor_kwargs model model_impl model_loader_extra_config num_gpu_blocks_override
    otlp_traces_endpoint override_attention_dtype override_generation_config pipeline_parallel_size
    pooler_config prefill_context_parallel_size prefix_caching_hash_algo pt_load_map_location quantization
    ray_workers_use_nsight reasoning_parser revision runner safetensors_load_strategy scheduler_cls
    scheduling_policy seed served_model_name show_hidden_metrics_for_version skip_mm_profiling
    skip_tokenizer_init speculative_config stream_interval structured_outputs_config swap_space
    tensor_parallel_size tokenizer tokenizer_mode tokenizer_revision trust_remote_code use_tqdm_on_load
    video_pruning_rate worker_cls worker_extension_cls
    """.split()  # noqa: SIM905
)


def check(arguments: dict) -> None:
    for key in arguments:
        if key not in ENGINE_ARGUMENTS:
            raise TypeError(f"AsyncEngineArgs.__init__() got an unexpected keyword argument '{key}'")
