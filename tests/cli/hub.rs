//! A stand-in for the Hugging Face hub: one repository.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;

pub(crate) struct Hub {
    address: SocketAddr,
    /// The heads of the requests that came.
    heads: Arc<Mutex<Vec<String>>>,
}

impl Hub {
    /// Serves `content` as `tiny.gguf` of repository `o/r`, for as long as the test runs.
    pub(crate) fn serving(content: &[u8]) -> Self {
        Hub::serving_files(&[("tiny.gguf", content)])
    }

    /// Serves these files as repository `o/r`.
    pub(crate) fn serving_files(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hub = Hub {
            address: listener.local_addr().unwrap(),
            heads: Arc::default(),
        };
        let names: Vec<_> = files
            .iter()
            .map(|(name, _)| json!({"rfilename": name}))
            .collect();
        let info = json!({"sha": "abc", "siblings": names}).to_string();
        let files: Vec<(String, Vec<u8>)> = files
            .iter()
            .map(|(name, content)| (name.to_string(), content.to_vec()))
            .collect();
        let heads = Arc::clone(&hub.heads);
        std::thread::spawn(move || {
            // A probe that only connects is no request, and its socket may be closed already.
            for socket in listener.incoming().flatten() {
                let _ = answer(socket, &info, &files, &heads);
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
    info: &str,
    files: &[(String, Vec<u8>)],
    heads: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut head = String::new();
    let mut reader = BufReader::new(socket.try_clone()?);
    while reader.read_line(&mut head)? > 2 {}
    let Some(path) = head.split(' ').nth(1).map(str::to_owned) else {
        return Ok(());
    };
    let first_byte_only = head.to_lowercase().contains("range: bytes=0-0\r");
    heads.lock().unwrap().push(head);
    if path.starts_with("/api/models/o/r/revision/") {
        return write!(
            socket,
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{info}",
            info.len()
        );
    }
    let in_repository = path
        .strip_prefix("/o/r/resolve/")
        .and_then(|rest| Some(rest.split_once('/')?.1));
    let Some((name, content)) = files
        .iter()
        .find(|(name, _)| Some(name.as_str()) == in_repository)
    else {
        return write!(
            socket,
            "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        );
    };
    let part = if first_byte_only {
        &content[..1]
    } else {
        content
    };
    write!(
        socket,
        "HTTP/1.1 206 Partial Content\r\netag: \"etag-of-{name}\"\r\nx-repo-commit: abc\r\n\
         content-range: bytes 0-{}/{}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        part.len() - 1,
        content.len(),
        part.len()
    )?;
    socket.write_all(part)
}
