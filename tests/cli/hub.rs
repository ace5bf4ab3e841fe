//! A stand-in for the Hugging Face hub: one file at one address.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

pub(crate) struct Hub {
    address: SocketAddr,
    /// The heads of the requests that came.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// Serves `content` as `/o/r/resolve/abc/tiny.gguf` for as long as the test runs.
    pub(crate) fn serving(content: &[u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Hub {
            address: listener.local_addr().unwrap(),
            heads: Arc::default(),
        };
        let (content, heads) = (content.to_vec(), Arc::clone(&hub.heads));
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                // A probe that only connects is no request.
                if let Ok(socket) = socket {
                    let _ = answer(socket, &content, &heads);
                }
            }
        });
        hub
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

fn answer(
    mut socket: TcpStream,
    content: &[u8],
    heads: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut head = String::new();
    let mut reader = BufReader::new(socket.try_clone()?);
    while reader.read_line(&mut head)? > 2 {}
    if head.is_empty() {
        return Ok(());
    }
    let total = content.len();
    let part = match head.to_lowercase().contains("range: bytes=0-0\r") {
        true => &content[..1],
        false => content,
    };
    let known = head.starts_with("GET /o/r/resolve/abc/tiny.gguf ");
    heads.lock().unwrap().push(head);
    if !known {
        return write!(
            socket,
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
    }
    write!(
        socket,
        "HTTP/1.1 206 Partial Content\r\netag: \"e\"\r\nx-repo-commit: abc\r\n\
         content-range: bytes 0-{}/{total}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        part.len() - 1,
        part.len()
    )?;
    socket.write_all(part)
}
