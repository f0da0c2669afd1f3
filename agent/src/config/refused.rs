//! Types that Flume has and this build has not: refused by name, with what to use instead.

/// One type of component that is not built.
#[derive(Debug, Clone, Copy)]
pub struct RefusedType {
    /// `sources`, `sinks`, `channels`, `interceptors` or `selectors`.
    pub kind: &'static str,
    pub alias: &'static str,
    /// Flume's class; empty where the alias is the class.
    pub class: &'static str,
    pub instead: &'static str,
}

const fn refused(kind: &'static str, alias: &'static str, class: &'static str, instead: &'static str) -> RefusedType {
    RefusedType { kind, alias, class, instead }
}

const TAIL_WITH_AVRO: &str = "Run a Flume agent with this source beside the files, and send to an `avro` source here";
const SEND_AVRO: &str = "Use `avro`, which Flume agents and SDK clients speak as well";
const RELAY: &str = "Run a Flume agent with it that sends to, or receives from, this one over `avro`";
const KEEP_FLUME_SINK: &str = "Send to a Flume agent with this sink through an `avro` sink, or use `hdfs`";
const DURABLE: &str = "Use `file`, which is durable, or `memory`";
const WHERE_WRITTEN: &str = "Do it in the Flume agent or the client that sends the events";

/// Every documented type of Flume 1.11 that is not in the tables of components.
pub static TYPES: &[RefusedType] = &[
    refused("sources", "thrift", "org.apache.flume.source.ThriftSource", SEND_AVRO),
    refused(
        "sources",
        "exec",
        "org.apache.flume.source.ExecSource",
        "Pipe the command into a `netcat` source: COMMAND | nc HOST PORT",
    ),
    refused("sources", "jms", "org.apache.flume.source.jms.JMSSource", RELAY),
    refused("sources", "spooldir", "org.apache.flume.source.SpoolDirectorySource", TAIL_WITH_AVRO),
    refused("sources", "TAILDIR", "org.apache.flume.source.taildir.TaildirSource", TAIL_WITH_AVRO),
    refused(
        "sources",
        "netcatudp",
        "org.apache.flume.source.NetcatUdpSource",
        "Use `netcat`, which is TCP and answers",
    ),
    refused("sources", "syslogtcp", "org.apache.flume.source.SyslogTcpSource", RELAY),
    refused("sources", "multiport_syslogtcp", "org.apache.flume.source.MultiportSyslogTCPSource", RELAY),
    refused("sources", "syslogudp", "org.apache.flume.source.SyslogUDPSource", RELAY),
    refused("sources", "org.apache.flume.source.kafka.KafkaSource", "", RELAY),
    refused("sources", "org.apache.flume.source.StressSource", "", "Use `seq` to make load"),
    refused("sources", "org.apache.flume.source.scribe.ScribeSource", "", RELAY),
    refused("sources", "org.apache.flume.source.avroLegacy.AvroLegacySource", "", RELAY),
    refused("sources", "org.apache.flume.source.thriftLegacy.ThriftLegacySource", "", RELAY),
    refused("sources", "org.apache.flume.source.twitter.TwitterSource", "", RELAY),
    refused("sinks", "thrift", "org.apache.flume.sink.ThriftSink", SEND_AVRO),
    refused("sinks", "http", "org.apache.flume.sink.http.HttpSink", KEEP_FLUME_SINK),
    refused("sinks", "hive", "org.apache.flume.sink.hive.HiveSink", KEEP_FLUME_SINK),
    refused("sinks", "hbase", "org.apache.flume.sink.hbase.HBaseSink", KEEP_FLUME_SINK),
    refused("sinks", "hbase2", "org.apache.flume.sink.hbase2.HBase2Sink", KEEP_FLUME_SINK),
    refused("sinks", "asynchbase", "org.apache.flume.sink.hbase.AsyncHBaseSink", KEEP_FLUME_SINK),
    refused("sinks", "irc", "org.apache.flume.sink.irc.IRCSink", KEEP_FLUME_SINK),
    refused(
        "sinks",
        "elasticsearch",
        "org.apache.flume.sink.elasticsearch.ElasticSearchSink",
        "Flume removed it in 1.10; use `hdfs` or `avro`",
    ),
    refused("sinks", "morphline_solr", "org.apache.flume.sink.solr.morphline.MorphlineSolrSink", KEEP_FLUME_SINK),
    refused("sinks", "org.apache.flume.sink.kafka.KafkaSink", "", KEEP_FLUME_SINK),
    refused("sinks", "org.apache.flume.sink.kite.DatasetSink", "", "Flume removed it in 1.10; use `hdfs`"),
    refused("sinks", "org.apache.kudu.flume.sink.KuduSink", "", KEEP_FLUME_SINK),
    refused("channels", "jdbc", "org.apache.flume.channel.jdbc.JdbcChannel", DURABLE),
    refused("channels", "SPILLABLEMEMORY", "org.apache.flume.channel.SpillableMemoryChannel", DURABLE),
    refused("channels", "org.apache.flume.channel.kafka.KafkaChannel", "", DURABLE),
    refused("channels", "org.apache.flume.channel.PseudoTxnMemoryChannel", "pseudotxnmemory", DURABLE),
    refused(
        "interceptors",
        "remove_header",
        "org.apache.flume.interceptor.RemoveHeaderInterceptor$Builder",
        WHERE_WRITTEN,
    ),
    refused(
        "interceptors",
        "regex_filter",
        "org.apache.flume.interceptor.RegexFilteringInterceptor$Builder",
        WHERE_WRITTEN,
    ),
    refused(
        "interceptors",
        "regex_extractor",
        "org.apache.flume.interceptor.RegexExtractorInterceptor$Builder",
        WHERE_WRITTEN,
    ),
    refused(
        "interceptors",
        "search_replace",
        "org.apache.flume.interceptor.SearchAndReplaceInterceptor$Builder",
        WHERE_WRITTEN,
    ),
    refused("interceptors", "org.apache.flume.sink.solr.morphline.UUIDInterceptor$Builder", "", WHERE_WRITTEN),
    refused("interceptors", "org.apache.flume.sink.solr.morphline.MorphlineInterceptor$Builder", "", WHERE_WRITTEN),
    refused(
        "selectors",
        "load_balancing",
        "org.apache.flume.channel.LoadBalancingChannelSelector",
        "Use `replicating` or `multiplexing`; one channel spreads over several disks by itself",
    ),
];

/// What to use instead of the type `name`, where it is one of Flume's.
pub fn instead_of(kind: &str, name: &str) -> Option<&'static str> {
    let found = TYPES.iter().find(|refused| {
        refused.kind == kind
            && (refused.alias.eq_ignore_ascii_case(name) || (!refused.class.is_empty() && refused.class == name))
    });
    found.map(|refused| refused.instead)
}
