//! Chat templates against Hugging Face's `apply_chat_template`.
