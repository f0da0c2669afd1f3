//! A real HDFS: one NameNode and a few DataNodes that can be killed, paused and started again, and Hadoop's own tools to
//! look into it from outside.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::java::{self, Module};
use crate::kdc::MiniKdc;
use crate::process::Process;
use crate::{http, ports, until};

const NAME_NODE: &str = "org.apache.hadoop.hdfs.server.namenode.NameNode";
const DATA_NODE: &str = "org.apache.hadoop.hdfs.server.datanode.DataNode";
const START_LIMIT: Duration = Duration::from_secs(90);
/// A tool is a JVM of its own: 2 s alone, more beside busy servers.
const TOOL_LIMIT_SECONDS: &str = "120";
const STARTS: usize = 3;

pub struct Hdfs {
    class_path: String,
    host: &'static str,
    rpc_port: u16,
    http_port: u16,
    system_properties: Vec<String>,
    name_node: Option<Process>,
    data_nodes: Vec<DataNode>,
    // Last, so that the servers are gone before their directory is.
    directory: TempDir,
}

struct DataNode {
    process: Option<Process>,
    arguments: Vec<String>,
}

impl Hdfs {
    /// Formats and starts a NameNode and `data_nodes` DataNodes; returns when all of them are live and safe mode is off.
    /// Files have two copies where there are two nodes to hold them.
    pub fn start(data_nodes: usize) -> Hdfs {
        Hdfs::with_retry(data_nodes, None)
    }

    /// The same with Kerberos: principals `hdfs/localhost` and `HTTP/localhost` from the centre's key table.
    pub fn start_secure(data_nodes: usize, centre: &MiniKdc) -> Hdfs {
        Hdfs::with_retry(data_nodes, Some(centre))
    }

    fn with_retry(data_nodes: usize, centre: Option<&MiniKdc>) -> Hdfs {
        for attempt in 1.. {
            let mut hdfs = Hdfs::prepare(data_nodes, centre);
            if hdfs.start_all(data_nodes) {
                return hdfs;
            }
            assert!(attempt < STARTS, "HDFS met taken ports {STARTS} times");
        }
        unreachable!("the loop ends by itself")
    }

    fn prepare(data_nodes: usize, centre: Option<&MiniKdc>) -> Hdfs {
        let directory = TempDir::with_prefix("penstock-hdfs-").expect("create a directory for HDFS");
        let root = directory.path();
        let (rpc_port, http_port) = (ports::free(), ports::free());
        // Kerberos principals name a host, and 127.0.0.1 is not one.
        let host = if centre.is_some() { "localhost" } else { "127.0.0.1" };
        for folder in ["cp/webapps/hdfs", "cp/webapps/datanode"] {
            fs::create_dir_all(root.join(folder)).expect("create a class path folder");
        }
        let mut core = vec![("fs.defaultFS", format!("hdfs://{host}:{rpc_port}"))];
        let mut site = vec![
            ("dfs.namenode.name.dir", format!("file://{}/nn", root.display())),
            ("dfs.namenode.rpc-address", format!("{host}:{rpc_port}")),
            ("dfs.namenode.http-address", format!("{host}:{http_port}")),
            ("dfs.namenode.safemode.extension", "0".to_owned()),
            ("dfs.namenode.fs-limits.min-block-size", "4096".to_owned()),
            ("dfs.heartbeat.interval", "1".to_owned()),
            ("dfs.namenode.heartbeat.recheck-interval", "1000".to_owned()),
            ("dfs.namenode.lease-recheck-interval-ms", "500".to_owned()),
            ("dfs.replication", data_nodes.min(2).to_string()),
            ("dfs.client.block.write.replace-datanode-on-failure.best-effort", "true".to_owned()),
        ];
        let mut system_properties = Vec::new();
        if let Some(centre) = centre {
            let keytab = centre.keytab().display().to_string();
            core.extend([
                ("hadoop.security.authentication", "kerberos".to_owned()),
                ("hadoop.security.authorization", "true".to_owned()),
                ("hadoop.rpc.protection", "authentication".to_owned()),
            ]);
            site.extend([
                ("dfs.block.access.token.enable", "true".to_owned()),
                ("dfs.data.transfer.protection", "authentication".to_owned()),
                ("ignore.secure.ports.for.testing", "true".to_owned()),
                ("dfs.http.policy", "HTTP_ONLY".to_owned()),
                ("dfs.namenode.kerberos.principal", centre.principal("hdfs/localhost")),
                ("dfs.datanode.kerberos.principal", centre.principal("hdfs/localhost")),
                ("dfs.namenode.keytab.file", keytab.clone()),
                ("dfs.datanode.keytab.file", keytab.clone()),
                ("dfs.web.authentication.kerberos.principal", centre.principal("HTTP/localhost")),
                ("dfs.web.authentication.kerberos.keytab", keytab),
            ]);
            system_properties.push(format!("-Djava.security.krb5.conf={}", centre.krb5_conf().display()));
        }
        write_xml(&root.join("cp/core-site.xml"), &core);
        write_xml(&root.join("cp/hdfs-site.xml"), &site);
        let log4j = "log4j.rootLogger=INFO,console\n\
             log4j.appender.console=org.apache.log4j.ConsoleAppender\n\
             log4j.appender.console.layout=org.apache.log4j.PatternLayout\n\
             log4j.appender.console.layout.ConversionPattern=%d{HH:mm:ss,SSS} %p %c{1}: %m%n\n";
        fs::write(root.join("cp/log4j.properties"), log4j).expect("write log4j.properties");
        let class_path = format!("{}:{}", root.join("cp").display(), java::class_path(Module::Hdfs));
        Hdfs {
            class_path,
            host,
            rpc_port,
            http_port,
            system_properties,
            name_node: None,
            data_nodes: Vec::new(),
            directory,
        }
    }

    fn start_all(&mut self, data_nodes: usize) -> bool {
        let arguments = self.java(128, NAME_NODE, &["-format", "-nonInteractive"]);
        let mut format = Process::start("format", self.directory.path(), &java::program(), &arguments, &[]);
        let status = format.await_end(START_LIMIT);
        assert!(status.success(), "the NameNode's format failed: {status}\n{}", format.last_lines());
        if !self.launch_name_node() {
            return false;
        }
        for _ in 0..data_nodes {
            self.add_data_node();
        }
        self.await_live(data_nodes);
        true
    }

    fn java(&self, heap_mib: u32, class: &str, rest: &[&str]) -> Vec<String> {
        let mut arguments = java::arguments(heap_mib, &self.system_properties, &self.class_path);
        arguments.push(class.to_owned());
        arguments.extend(rest.iter().map(|text| (*text).to_owned()));
        arguments
    }

    /// False when one of the picked ports was taken meanwhile.
    fn launch_name_node(&mut self) -> bool {
        let arguments = self.java(256, NAME_NODE, &[]);
        let mut process = Process::start("namenode", self.directory.path(), &java::program(), &arguments, &[]);
        let before = process.log_length();
        let up = process.await_ready("NameNode RPC up", START_LIMIT, |process| {
            let log = process.log_since(before);
            if log.contains("Address already in use") {
                return Some(false);
            }
            log.contains("NameNode RPC up at").then_some(true)
        });
        self.name_node = Some(process);
        up
    }

    fn add_data_node(&mut self) {
        let number = self.data_nodes.len() + 1;
        let root = self.directory.path();
        let settings = [
            format!("hadoop.tmp.dir={}/tmp{number}", root.display()),
            format!("dfs.datanode.data.dir=file://{}/dn{number}", root.display()),
            format!("dfs.datanode.address={}:{}", self.host, ports::free()),
            format!("dfs.datanode.http.address={}:{}", self.host, ports::free()),
            format!("dfs.datanode.ipc.address={}:{}", self.host, ports::free()),
        ];
        let rest: Vec<&str> = settings.iter().flat_map(|setting| ["-D", setting.as_str()]).collect();
        let arguments = self.java(128, DATA_NODE, &rest);
        self.data_nodes.push(DataNode { process: None, arguments });
        self.launch_data_node(number - 1);
    }

    fn launch_data_node(&mut self, index: usize) {
        let node = &mut self.data_nodes[index];
        let name = format!("datanode{}", index + 1);
        node.process = Some(Process::start(&name, self.directory.path(), &java::program(), &node.arguments, &[]));
    }

    fn await_live(&mut self, data_nodes: usize) {
        let (http_port, mut last) = (self.http_port, String::new());
        let mut name_node = self.name_node.take().expect("the NameNode was started");
        name_node.await_ready("all DataNodes live, safe mode off", START_LIMIT, |_| {
            last = jmx(http_port, "FSNamesystemState")?;
            let live = last.contains(&format!("\"NumLiveDataNodes\" : {data_nodes},"));
            let info = jmx(http_port, "NameNodeInfo")?;
            (live && info.contains("\"Safemode\" : \"\"")).then_some(())
        });
        self.name_node = Some(name_node);
    }

    /// `hdfs://host:port`, without a slash at the end.
    pub fn url(&self) -> String {
        format!("hdfs://{}:{}", self.host, self.rpc_port)
    }

    /// The folder with `core-site.xml` and `hdfs-site.xml`, as a client's `HADOOP_CONF_DIR`.
    pub fn configuration(&self) -> PathBuf {
        self.directory.path().join("cp")
    }

    /// `kill -9` of one DataNode; its directory and ports stay.
    pub fn kill_data_node(&mut self, index: usize) {
        if let Some(mut process) = self.data_nodes[index].process.take() {
            process.kill();
        }
    }

    /// Starts a killed DataNode again on its old directory and ports, without waiting.
    pub fn restart_data_node(&mut self, index: usize) {
        self.launch_data_node(index);
    }

    pub fn data_node(&self, index: usize) -> &Process {
        self.data_nodes[index].process.as_ref().expect("the DataNode runs")
    }

    /// Waits until the NameNode counts every DataNode that was ever added as live.
    pub fn await_all_live(&mut self) {
        let count = self.data_nodes.len();
        self.await_live(count);
    }

    pub fn kill_name_node(&mut self) {
        if let Some(mut process) = self.name_node.take() {
            process.kill();
        }
    }

    /// Starts a killed NameNode again on its old ports; returns when blocks are reported, so that a file can be appended.
    pub fn restart_name_node(&mut self) {
        let log = self.directory.path().join("namenode.log");
        let before = fs::metadata(&log).map_or(0, |meta| meta.len());
        assert!(self.launch_name_node(), "the NameNode's old port is taken");
        let reports = self.data_nodes.iter().filter(|node| node.process.is_some()).count();
        let name_node = self.name_node.as_mut().expect("just started");
        name_node.await_ready("a block report of each DataNode", START_LIMIT, |process| {
            (process.log_since(before).matches("BLOCK* processReport").count() >= reports).then_some(())
        });
        self.await_live(reports);
    }

    pub fn name_node_log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.directory.path().join("namenode.log")).unwrap_or_default()).into_owned()
    }

    /// Full paths of all files below `path`, sorted; none when the path does not exist.
    pub fn list(&self, path: &str) -> Vec<String> {
        let output = self.tool("org.apache.hadoop.fs.FsShell", &["-ls", "-R", path]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let files = text.lines().filter(|line| line.starts_with('-'));
        // "-rw-r--r--   1 root supergroup  5 2026-11-21 02:00 /path with spaces"
        let mut names: Vec<String> =
            files.filter_map(|line| line.find(" /").map(|at| line[at + 1..].to_owned())).collect();
        names.sort();
        names
    }

    /// The bytes of one file, as Hadoop's own client reads them.
    pub fn read(&self, path: &str) -> Vec<u8> {
        let output = self.tool("org.apache.hadoop.fs.FsShell", &["-cat", path]);
        assert!(output.status.success(), "cannot read {path}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Copies everything below `path` to a local folder and returns the files in it: one JVM for thousands of files.
    pub fn copy_to(&self, path: &str, target: &Path) -> Vec<PathBuf> {
        let target_text = target.display().to_string();
        let output = self.tool("org.apache.hadoop.fs.FsShell", &["-get", path, &target_text]);
        assert!(output.status.success(), "cannot copy {path}: {}", String::from_utf8_lossy(&output.stderr));
        let mut files = Vec::new();
        let mut folders = vec![target.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).expect("list a copied folder") {
                let path = entry.expect("list a copied folder").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_none_or(|extension| extension != "crc") {
                    files.push(path);
                }
            }
        }
        files.sort();
        files
    }

    /// Files that some writer holds open, from `fsck -openforwrite`.
    pub fn open_for_write(&self) -> Vec<String> {
        let address = format!("dfs.namenode.http-address={}:{}", self.host, self.http_port);
        let output = self.tool("org.apache.hadoop.hdfs.tools.DFSck", &["-D", &address, "/", "-files", "-openforwrite"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("Status:"), "fsck gave no verdict:\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
        let open = text.lines().filter(|line| line.contains("OPENFORWRITE"));
        open.map(|line| line.split(' ').next().unwrap_or(line).to_owned()).collect()
    }

    /// One of Hadoop's command-line tools, with an end.
    pub fn tool(&self, class: &str, rest: &[&str]) -> std::process::Output {
        let mut arguments = vec!["-k".to_owned(), "5".to_owned(), TOOL_LIMIT_SECONDS.to_owned()];
        arguments.push(java::program().display().to_string());
        let url = self.url();
        let mut with_url = vec!["-fs", url.as_str()];
        with_url.extend(rest);
        arguments.extend(self.java(256, class, &with_url));
        let mut command = Command::new("timeout");
        command.args(arguments).env_remove("HADOOP_CONF_DIR").env_remove("JAVA_TOOL_OPTIONS");
        command.current_dir(self.directory.path()).output().expect("run a Hadoop tool")
    }

    /// Waits until no file is open for write; returns the last answer when that takes longer than `limit`.
    pub fn await_none_open(&self, limit: Duration) {
        let mut open = Vec::new();
        until("no file is open for write", limit, || {
            open = self.open_for_write();
            open.is_empty().then_some(())
        });
    }
}

fn jmx(port: u16, bean: &str) -> Option<String> {
    let answer = http::get(port, &format!("/jmx?qry=Hadoop:service=NameNode,name={bean}"))?;
    (answer.status == 200).then(|| String::from_utf8_lossy(&answer.body).into_owned())
}

fn write_xml(path: &Path, properties: &[(&str, String)]) {
    let mut text = String::from("<?xml version=\"1.0\"?>\n<configuration>\n");
    for (name, value) in properties {
        writeln!(text, "  <property><name>{name}</name><value>{value}</value></property>").expect("write to a string");
    }
    text.push_str("</configuration>\n");
    fs::write(path, text).expect("write a Hadoop configuration file");
}
